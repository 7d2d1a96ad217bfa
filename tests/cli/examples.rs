//! The programs in `examples/`, against the service.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use redis::Commands;
use serde_json::{Value, json};
use test_support::redis_server::RedisServer;
use test_support::{npm, python};

use crate::program::path;
use crate::service::{Lines, Process, Service, eventually};
use crate::wire::{begin, call};

const NODE: [(&str, &str); 8] = [
    ("package.json", include_str!("../../examples/node/package.json")),
    ("package-lock.json", include_str!("../../examples/node/package-lock.json")),
    ("tsconfig.json", include_str!("../../examples/node/tsconfig.json")),
    ("callback.js", include_str!("../../examples/node/callback.js")),
    ("express-provider.js", include_str!("../../examples/node/express-provider.js")),
    ("fastify-provider.ts", include_str!("../../examples/node/fastify-provider.ts")),
    ("consume-events.ts", include_str!("../../examples/node/consume-events.ts")),
    ("consume-redis.ts", include_str!("../../examples/node/consume-redis.ts")),
];

/// The directory in which the examples for Node are installed.
fn node_directory() -> &'static Path {
    static INSTALLED_IN: OnceLock<PathBuf> = OnceLock::new();
    INSTALLED_IN.get_or_init(|| npm::install(Path::new(env!("CARGO_TARGET_TMPDIR")), "examples", &NODE))
}

/// A running example.
struct Example {
    process: Process,
    out: Lines,
    err: Lines,
}

impl Example {
    fn node(script: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new("node");
        command.args(["--import", "tsx", script]).current_dir(node_directory());
        Self::start(command, arguments, variables)
    }

    fn python(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(python::interpreter(env!("CARGO_TARGET_TMPDIR")));
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python");
        command.current_dir(directory).env("PYTHONDONTWRITEBYTECODE", "1");
        Self::start(command, arguments, variables)
    }

    fn start(mut command: Command, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        command.args(arguments).env("PATH", path()).envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process(command.spawn().unwrap());
        let out = Lines::of(process.0.stdout.take().unwrap());
        let err = Lines::of(process.0.stderr.take().unwrap());
        Self { process, out, err }
    }

    /// Its complete output.
    fn text(&self) -> String {
        format!("{}\n{}", self.out.text(), self.err.text())
    }

    /// Waits until it listens, and returns its address.
    fn address(&mut self) -> String {
        eventually("the provider listens", || {
            port(&self.text()).is_some() || self.process.0.try_wait().unwrap().is_some()
        });
        let port = port(&self.text()).unwrap_or_else(|| panic!("{}", self.text()));
        format!("127.0.0.1:{port}")
    }

    /// Waits until it has exited with 0, and returns the sequences of the printed envelopes.
    fn sequences(mut self) -> Vec<u64> {
        assert_eq!(self.process.exit_code(), Some(0), "{}", self.text());
        let written = self.out.whole();
        let envelopes = serde_json::Deserializer::from_str(&written).into_iter::<Value>();
        envelopes.map(|envelope| envelope.unwrap()["sequence"].as_u64().unwrap()).collect()
    }
}

/// The port that a provider says it listens on.
fn port(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("127.0.0.1:").or_else(|| text.split_once("listening "))?;
    Some(rest.chars().take_while(char::is_ascii_digit).collect())
}

fn issue(service: &Service, conversation: &str, work: &Value) -> Value {
    assert!(service.platform("PUT", conversation, "").status <= 201);
    let issued = service.platform("POST", &format!("{conversation}/work-items"), &work.to_string());
    assert_eq!(issued.status, 201, "{issued:?}");
    issued.json()
}

/// The first envelopes of a channel.
fn channel(service: &Service, conversation: &str, count: u64) -> Vec<Value> {
    let key = format!("authorization: Bearer {}", service.made_key());
    let path = format!("GET /platform/v1/conversations/{conversation}/events?from=0");
    let mut events = begin(&service.platform, &path, &[&key], "\r\n");
    let envelope = |_| {
        events.read_until("data: ");
        serde_json::from_str(&events.read_until("\n")).unwrap()
    };
    (0..count).map(envelope).collect()
}

/// Forwards to this address, but responds 503 to the first request, and does not respond to the second. Returns its own
/// address.
fn unreliable(to: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, to) = (listener.local_addr().unwrap().to_string(), to.to_owned());
    thread::spawn(move || {
        for (number, client) in listener.incoming().map_while(Result::ok).enumerate() {
            match number {
                0 => respond(client, "503 Service Unavailable\r\nretry-after: 1"),
                1 => {}
                _ => drop(forward(client, &to, &Arc::default())),
            }
        }
    });
    address
}

/// Reads a request, and responds with this status and header field.
fn respond(mut client: TcpStream, head: &str) {
    let mut read = Vec::new();
    let mut byte = [0];
    while !read.ends_with(b"}") && client.read(&mut byte).unwrap() == 1 {
        read.extend(byte);
    }
    client.write_all(format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\n\r\n").as_bytes()).unwrap();
}

/// Forwards both directions until one of them ends, or `is_cut`.
fn forward(client: TcpStream, to: &str, is_cut: &Arc<AtomicBool>) -> std::io::Result<()> {
    let service = TcpStream::connect(to)?;
    for (mut from, mut to) in [(client.try_clone()?, service.try_clone()?), (service, client)] {
        let is_cut = Arc::clone(is_cut);
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut piece) {
                if is_cut.load(Ordering::SeqCst) || to.write_all(&piece[..length]).is_err() {
                    break;
                }
            }
            drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
        });
    }
    Ok(())
}

/// A provider posts with every carrier, reports a failure, and retries. `field`: the member of its work that is empty
/// for a failure.
fn provider_posts_results(mut provider: Example, kind: &str, field: &str) {
    let service = Service::start(&[]);
    let address = provider.address();
    let dispatch = |callback: &Value, value: &str| {
        let work = json!({"callback": callback, field: value});
        let accepted = call(&address, "POST /work", &[], &work.to_string());
        assert_eq!(accepted.status, 202, "{accepted:?}\n{}", provider.text());
    };
    let carriers = ["header", "query", "body", "path"];
    for carrier in carriers {
        let issued = issue(&service, "call-1", &json!({"kind": kind, "carrier": carrier}));
        dispatch(&issued["callback"], "Oslo");
    }
    let issued = issue(&service, "call-1", &json!({"kind": kind}));
    dispatch(&issued["callback"], "");
    let mut issued = issue(&service, "call-1", &json!({"kind": kind}));
    let url = issued["callback"]["url"].as_str().unwrap();
    issued["callback"]["url"] = url.replace(&service.public, &unreliable(&service.public)).into();
    dispatch(&issued["callback"], "Oslo");

    let envelopes = channel(&service, "call-1", 6);
    for (index, envelope) in envelopes.iter().enumerate() {
        let outcome = if index == 4 { "failed" } else { "succeeded" };
        assert_eq!(envelope["outcome"], outcome, "{envelope}");
        let text = envelope.to_string();
        assert!(index == 4 || text.contains("Oslo"), "{text}");
        assert!(!text.contains("cbt_"), "{text}");
    }
    eventually("all receipts are logged", || {
        provider.text().matches("\"replayed\"").count() + provider.text().matches("'replayed'").count() >= 6
    });
    assert!(!provider.text().contains("cbt_"), "a provider logs no token: {}", provider.text());
}

#[test]
fn express_provider_posts_results() {
    let provider = Example::node("express-provider.js", &[], &[("PORT", "0")]);
    provider_posts_results(provider, "tool", "city");
}

#[test]
fn fastify_provider_posts_results() {
    let provider = Example::node("fastify-provider.ts", &[], &[("PORT", "0")]);
    provider_posts_results(provider, "llm", "prompt");
}

#[test]
fn fastapi_provider_posts_results() {
    let provider = Example::python(&["-m", "uvicorn", "fastapi_provider:app", "--port", "0"], &[]);
    provider_posts_results(provider, "tool", "city");
}

#[test]
fn providers_follow_no_redirect() {
    let service = Service::start(&[]);
    let fastapi = ["-m", "uvicorn", "fastapi_provider:app", "--port", "0"];
    for mut provider in
        [Example::node("express-provider.js", &[], &[("PORT", "0")]), Example::python(&fastapi, &[])]
    {
        let address = provider.address();
        let mut issued = issue(&service, "call-1", &json!({"kind": "tool"}));
        let url = issued["callback"]["url"].as_str().unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let elsewhere = listener.local_addr().unwrap().to_string();
        issued["callback"]["url"] = url.replace(&service.public, &elsewhere).into();
        let work = json!({"callback": issued["callback"], "city": "Oslo"});
        assert_eq!(call(&address, "POST /work", &[], &work.to_string()).status, 202);
        let redirect = format!("308 Permanent Redirect\r\nlocation: {url}");
        respond(listener.accept().unwrap().0, &redirect);
        eventually("it says so", || provider.text().contains("not accepted: 308"));
        let item = format!("call-1/work-items/{}", issued["workItemId"].as_str().unwrap());
        assert_eq!(service.platform("GET", &item, "").json()["state"], "awaiting");
    }
}

#[test]
fn consumers_read_the_channel_once_in_order() {
    let redis = RedisServer::start();
    let service = Service::start(&["--store", &redis.url(0)]);
    eventually("it works", || service.platform("PUT", "call-1", "").status <= 201);
    let opened = service.platform("PUT", "call-1", "").json();
    let stream = opened["channel"]["redisStream"].as_str().unwrap();

    // Of the event streams, the first connections are cut after some events.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let platform_url = format!("http://{}", listener.local_addr().unwrap());
    let is_cut = Arc::new(AtomicBool::new(false));
    let (first, platform) = (Arc::clone(&is_cut), service.platform.clone());
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let is_cut = if first.load(Ordering::SeqCst) { Arc::default() } else { Arc::clone(&first) };
            drop(forward(client, &platform, &is_cut));
        }
    });

    let (key, url) = (service.made_key(), redis.url(0));
    let of_platform = [("PLATFORM_URL", &*platform_url), ("SERVICE_KEY", &*key)];
    let of_redis = [("REDIS_URL", &*url)];
    // Two that read from the start, and one with an unacknowledged entry of a consumer group.
    let consumers = [
        ("events in TypeScript", Example::node("consume-events.ts", &["call-1"], &of_platform)),
        ("events in Python", Example::python(&["consume_events.py", "call-1"], &of_platform)),
        ("Redis in TypeScript", Example::node("consume-redis.ts", &[stream], &of_redis)),
        ("Redis in Python", Example::python(&["consume_redis.py", stream], &of_redis)),
    ];
    let answer = |count: u64| {
        for number in 0..count {
            let issued = issue(&service, "call-1", &json!({"kind": "tool"}));
            let token = issued["callback"]["token"].as_str().unwrap();
            // An event that is not on the channel.
            let (path, header) =
                ("POST /api/v1/webhooks/callbacks/heartbeat", format!("x-callback-token: {token}"));
            let progress = call(&service.public, path, &[&header], r#"{"message":"at work"}"#);
            assert_eq!(progress.status, 200, "{progress:?}");
            assert_eq!(service.callback(token, &format!("{{\n  \"number\": {number}\n}}")).status, 202);
        }
    };
    let all_have = |sequence: u64| {
        for (name, consumer) in &consumers {
            eventually(&format!("{name} has number {sequence}"), || {
                let texts = [format!("\"sequence\":{sequence},"), format!("\"sequence\": {sequence},")];
                texts.iter().any(|text| consumer.out.text().contains(text))
            });
        }
    };
    answer(3);
    all_have(3);
    // All event streams are open now and get progress.
    answer(1);
    all_have(4);
    is_cut.store(true, Ordering::SeqCst);
    answer(3);
    assert_eq!(service.platform("DELETE", "call-1", "").status, 200);
    for (name, consumer) in consumers {
        assert_eq!(consumer.sequences(), [1, 2, 3, 4, 5, 6, 7], "{name}");
    }

    // A consumer of the group crashed before it acknowledged the entry, and gets it again.
    let group = |stream: &str| -> redis::RedisResult<()> {
        let mut connection = redis.connection(0);
        let _: () = connection.xgroup_create_mkstream(stream, "platform", "0")?;
        let options = redis::streams::StreamReadOptions::default().group("platform", "consumer-1").count(1);
        let read: redis::streams::StreamReadReply = connection.xread_options(&[stream], &[">"], &options)?;
        assert_eq!(read.keys[0].ids.len(), 1);
        Ok(())
    };
    let opened = service.platform("PUT", "call-2", "").json();
    let stream = opened["channel"]["redisStream"].as_str().unwrap();
    for _ in 0..2 {
        let issued = issue(&service, "call-2", &json!({"kind": "tool"}));
        assert_eq!(service.callback(issued["callback"]["token"].as_str().unwrap(), "1").status, 202);
    }
    group(stream).unwrap();
    assert_eq!(service.platform("DELETE", "call-2", "").status, 200);
    assert_eq!(Example::python(&["consume_redis.py", stream], &of_redis).sequences(), [1, 2]);
    // The group does not prevent the stream from expiring.
    let ttl: i64 = redis.connection(0).pttl(stream).unwrap();
    assert!(ttl > 0, "{ttl}");
}

#[test]
fn typescript_examples_have_no_type_errors() {
    let mut command = Command::new(node_directory().join("node_modules/.bin/tsc"));
    let ran = command.current_dir(node_directory()).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
}

#[test]
fn python_examples_use_the_tested_versions() {
    let tested = include_str!("../python-requirements.txt");
    for line in include_str!("../../examples/python/requirements.txt").lines() {
        assert!(tested.lines().any(|other| other == line), "{line}");
    }
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    for (folder, count) in [("node", NODE.len()), ("python", 5)] {
        let files = fs::read_dir(directory.join(folder)).unwrap().map(|entry| entry.unwrap());
        let files: Vec<_> =
            files.filter(|entry| entry.file_type().unwrap().is_file()).map(|entry| entry.path()).collect();
        assert_eq!(files.len(), count, "each example is tested: {files:?}");
    }
}

/// The program in the documentation for providers.
#[test]
fn documented_typescript_posts_a_callback() {
    let page = include_str!("../../docs/providers.md");
    let program = page.split("\n```ts\n").nth(1).unwrap().split("\n```").next().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("callback.mts");
    fs::write(&file, program).unwrap();
    let service = Service::start(&[]);
    let callback = &issue(&service, "call-1", &json!({"kind": "tool"}))["callback"];
    let mut variables = vec![("CALLBACK_URL", callback["url"].as_str().unwrap())];
    variables.push(("CALLBACK_TOKEN", callback["token"].as_str().unwrap()));
    variables.push(("CALLBACK_DEADLINE", callback["deadline"].as_str().unwrap()));
    let mut example = Example::node(file.to_str().unwrap(), &[], &variables);
    assert_eq!(example.process.exit_code(), Some(0), "{}", example.text());
    assert!(example.out.whole().contains("status: 'delivered'"), "{}", example.text());
    assert_eq!(channel(&service, "call-1", 1)[0]["result"], json!({"answer": 42}));
}
