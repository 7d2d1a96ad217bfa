//! The sweeper's load on Redis, and how late it times out items.

use std::time::Duration;

use ::redis::cmd;
use callback_ingress::domain::ids::ConversationId;
use futures_util::future::join_all;
use serde_json::json;
use test_support::redis_server::RedisServer;
use tokio::time::{Instant, sleep};

use crate::service::{Service, millis};

/// Number of commands that Redis has executed, including those of scripts.
fn commands(server: &RedisServer) -> u64 {
    let stats: String = cmd("INFO").arg("stats").query(&mut server.connection(0)).unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix("total_commands_processed:")).unwrap();
    line.parse().unwrap()
}

/// Time from the deadline of the first item to its release, in milliseconds.
async fn lateness(service: &Service, conversation: &str) -> u64 {
    let envelope = service.events(conversation, "?from=0").await.next().await.unwrap().envelope();
    assert_eq!(envelope["outcome"], "timed_out");
    millis(&envelope["releasedAt"]) - millis(&envelope["receivedAt"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_instance_sends_few_commands() {
    const SECONDS: u64 = 6;
    for partitions in ["64", "16384"] {
        let server = RedisServer::start();
        let service =
            Service::start(&[("store.url", &server.url(0)), ("store.partitions", partitions)]).await;
        // One item that is not due yet.
        service.fresh_tool().await;
        let mut asked = Vec::new();
        // The first look at all partitions takes longer on a busy machine.
        while asked.last().is_none_or(|asked| *asked >= 20 * SECONDS) {
            assert!(asked.len() < 6, "{asked:?} commands, each in {SECONDS} s, with {partitions} partitions");
            let before = commands(&server);
            sleep(Duration::from_secs(SECONDS)).await;
            asked.push(commands(&server) - before);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timers_of_a_stopped_instance_fire_on_another() {
    let server = RedisServer::start();
    let (leaving, staying) = (Service::on(&server).await, Service::on(&server).await);
    let conversation = leaving.open().await;
    leaving.issue(&conversation, &json!({"kind": "tool", "timeoutMs": 4_000})).await;
    // Long enough for the announcement.
    sleep(Duration::from_millis(1_500)).await;
    leaving.drain();
    leaving.ended().await;
    // Without the announcement, the rotation over all partitions finds the timer only within 22 seconds.
    let late = lateness(&staying, &conversation).await;
    assert!(late <= 1_000, "{late} ms late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_share_many_simultaneous_timers() {
    const CONVERSATIONS: u64 = 600;
    for instances in [1, 3] {
        let server = RedisServer::start();
        let services = join_all((0..instances).map(|_| Service::on(&server))).await;
        let due_from = Instant::now() + Duration::from_secs(4);
        let issue = async |number: u64| {
            let service = &services[usize::try_from(number).unwrap() % services.len()];
            let conversation = service.open().await;
            let at = due_from + Duration::from_millis(number * 1_000 / CONVERSATIONS);
            let timeout = u64::try_from((at - Instant::now()).as_millis()).unwrap();
            service.issue(&conversation, &json!({"kind": "tool", "timeoutMs": timeout})).await;
            conversation
        };
        let mut conversations = Vec::new();
        // A service takes 512 requests at once; more are OVERLOADED.
        for first in (0..CONVERSATIONS).step_by(100) {
            conversations.extend(join_all((first..first + 100).map(&issue)).await);
        }
        tokio::time::sleep_until(due_from).await;
        let mut late: Vec<u64> = Vec::new();
        for conversation in &conversations {
            late.push(lateness(&services[0], conversation).await);
        }
        late.sort_unstable();
        // The target is 100 ms for a release build on an idle machine.
        let p99 = late[late.len() * 99 / 100];
        assert!(p99 <= 400, "{instances} instances: p99 {p99} ms of {late:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_conversation_does_not_delay_its_partition() {
    let server = RedisServer::start();
    let service = Service::start(&[("store.url", &server.url(0)), ("store.partitions", "1")]).await;
    let spoilt = service.open().await;
    let issue = async |conversation: &str, timeout: u64| {
        service.issue(conversation, &json!({"kind": "tool", "timeoutMs": timeout})).await
    };
    join_all((0..300).map(|_| issue(&spoilt, 3_000))).await;
    let reference = ConversationId::parse(&spoilt).unwrap().reference();
    let mut connection = server.connection(0);
    for key in cmd("KEYS").arg(format!("*{reference}*")).query::<Vec<String>>(&mut connection).unwrap() {
        cmd("DEL").arg(&key).exec(&mut connection).unwrap();
        cmd("RPUSH").arg(&key).arg("spoilt").exec(&mut connection).unwrap();
    }
    sleep(Duration::from_millis(3_200)).await;
    for _ in 0..3 {
        let conversation = service.open().await;
        issue(&conversation, 300).await;
        let late = lateness(&service, &conversation).await;
        assert!(late <= 400, "{late} ms late");
    }
    // The backoff of the unreadable conversation keeps the number of commands low.
    let before = commands(&server);
    sleep(Duration::from_secs(4)).await;
    let asked = commands(&server) - before;
    assert!(asked < 400, "{asked} commands in 4 s");
}
