//! The documented retry programs, while Redis is unavailable.

use std::fs;

use serde_json::{Value, json};
use test_support::redis_server::RedisServer;
use tokio::task::block_in_place;
use tokio::time::{Duration, sleep};

use super::node_directory;
use super::program::Program;
use crate::service::{CALLBACKS, Item, Service};

const README: &str = include_str!("../../../README.md");
const PROVIDERS: &str = include_str!("../../../docs/providers.md");

const AWAY: Duration = Duration::from_secs(8);
const ITEMS: usize = 30;

/// Posts the callbacks of its input at once: each line is URL, token, deadline and answer, separated by `|`. Prints the
/// outcomes.
const PYTHON: &str = r#"
import sys
from concurrent.futures import ThreadPoolExecutor

def post(line):
    url, token, deadline, answer = line.split("|")
    headers = {"X-Callback-Token": token, "Content-Type": "application/json"}
    return post_callback(url, headers, deadline, {"answer": int(answer)})["outcome"]

with ThreadPoolExecutor(64) as pool:
    for outcome in pool.map(post, sys.stdin.read().splitlines()):
        print(outcome)
"#;

/// The same in TypeScript and JavaScript.
const TYPESCRIPT: &str = r"
import { readFileSync } from 'node:fs';
const lines = readFileSync(0, 'utf8').trim().split('\n');
const outcomes = await Promise.all(lines.map(async (line) => {
  const [url, token, deadline, answer] = line.split('|');
  const headers = { 'X-Callback-Token': token, 'Content-Type': 'application/json' };
  return POST;
}));
for (const receipt of outcomes) console.log((receipt as { outcome: string }).outcome);
";

/// The function in a code block of a page, without the call behind it.
fn printed(page: &'static str, language: &str, call: &str) -> &'static str {
    let block = page.split(&format!("\n```{language}\n")).nth(1).unwrap().split("\n```").next().unwrap();
    block.split(call).next().unwrap()
}

/// The programs, by language: each has a function of the documentation.
fn programs() -> [Program; 3] {
    let post = "postCallback(url, headers, deadline, { answer: Number(answer) })";
    let typescript =
        printed(PROVIDERS, "ts", "\nconsole.log(").to_owned() + &TYPESCRIPT.replace("POST", post);
    let post = "postCallback({ url, headers, deadline }, { answer: Number(answer) })";
    let javascript = printed(README, "js", "\nconsole.log(").to_owned()
        + &TYPESCRIPT.replace("POST", post).replace(" as { outcome: string }", "");
    let python = printed(PROVIDERS, "python", "\nprint(post_callback(").to_owned() + PYTHON;
    let directory = node_directory();
    let file = directory.join("documented.mts");
    fs::write(&file, typescript).unwrap();
    let tsx = directory.join("node_modules/.bin/tsx");
    [
        Program::start("python3", &["-c", &python]),
        Program::start("node", &["--input-type=module", "-e", &javascript]),
        Program::start(tsx.to_str().unwrap(), &[file.to_str().unwrap()]),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documented_retries_lose_nothing_while_redis_is_away() {
    let mut redis = RedisServer::durable();
    // The defaults; the other tests use longer timeouts.
    let timeouts = [("store.connect_timeout_ms", "1000"), ("store.response_timeout_ms", "1000")];
    let url = redis.url(0);
    let service = Service::start(&[&[("store.url", url.as_str())], &timeouts[..]].concat()).await;
    let conversation = service.open().await;
    let mut items = Vec::new();
    for _ in 0..ITEMS {
        items.push(service.issue(&conversation, &json!({"kind": "tool", "timeoutMs": 60_000})).await);
    }
    redis.kill();
    let mut programs = programs();
    for (at, item) in items.iter().enumerate() {
        programs[at % 3].tell(&callback(&service, item)).await;
    }
    let finished = programs.map(|program| tokio::spawn(program.finish()));
    sleep(AWAY).await;
    block_in_place(|| redis.restart());
    for outcomes in finished {
        assert_eq!(outcomes.await.unwrap(), ["succeeded"; ITEMS / 3]);
    }
    let channel = service.channel(&conversation, ITEMS).await;
    for (item, envelope) in items.iter().zip(channel) {
        let envelope: Value = serde_json::from_str(&envelope).unwrap();
        let arrived = (&envelope["sequence"], &envelope["result"]["answer"]);
        assert_eq!(arrived, (&json!(item.sequence), &json!(item.sequence)), "{envelope}");
    }
}

fn callback(service: &Service, item: &Item) -> String {
    let deadline = item.issued["callback"]["deadline"].as_str().unwrap();
    format!("http://{}{CALLBACKS}|{}|{deadline}|{}", service.public, item.token, item.sequence)
}
