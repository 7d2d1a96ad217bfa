//! No script blocks Redis for long, even at the limits of a conversation.

use ::redis::cmd;
use callback_ingress::domain::gate::Limits;
use callback_ingress::domain::ids::TurnId;
use callback_ingress::domain::work_item::WorkItem;
use callback_ingress::store::{DueConversation, Store};
use futures_util::{StreamExt, stream};
use test_support::redis_server::RedisServer;

use crate::conversation::Conversation;
use crate::stage::{ROOMY, START, Stage, settings};

/// The default of `gate.max_held_items` and `gate.max_awaiting_items`.
const ITEMS: u64 = 16_384;
/// Maximum duration of a script, in microseconds.
const LONGEST: u64 = 5_000;
/// Attempts per operation, because a busy machine can make a script slow.
const TRIES: usize = 4;

/// Id, time, microseconds, arguments (can be binary), client address, client name.
type Entry = (u64, u64, u64, Vec<Vec<u8>>, String, String);

/// The slow log of a server.
pub(super) struct SlowLog<'a> {
    server: &'a RedisServer,
    connection: redis::Connection,
    /// [`waited`] at the last call of [`SlowLog::take`].
    waited: u64,
}

/// How long the server's main thread was ready to run and had no core, in microseconds.
fn waited(server: &RedisServer) -> u64 {
    let pid = server.pid();
    let statistics = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat")).unwrap();
    statistics.split(' ').nth(1).unwrap().parse::<u64>().unwrap() / 1_000
}

impl<'a> SlowLog<'a> {
    pub(super) fn of(server: &'a RedisServer) -> Self {
        let mut connection = server.connection(0);
        cmd("CONFIG").arg("SET").arg("slowlog-log-slower-than").arg(LONGEST).exec(&mut connection).unwrap();
        Self { server, connection, waited: waited(server) }
    }

    /// The slow commands since the last call. The log has wall-clock time: a minority of slow commands does not count if the
    /// server had to wait for a core for as long as they were too slow.
    pub(super) fn take(&mut self) -> Vec<String> {
        let entries: Vec<Entry> = cmd("SLOWLOG").arg("GET").arg(-1).query(&mut self.connection).unwrap();
        let statistics: String = cmd("INFO").arg("commandstats").query(&mut self.connection).unwrap();
        let scripts = statistics.split_once("cmdstat_evalsha:calls=").map_or("0", |(_, rest)| rest);
        let scripts: usize = scripts.split(',').next().unwrap().parse().unwrap();
        let waited = waited(self.server);
        let excess: u64 = entries.iter().map(|(_, _, micros, ..)| micros - LONGEST).sum();
        let is_explained = entries.len() * 4 <= scripts && excess <= waited - self.waited;
        for command in [["SLOWLOG", "RESET"], ["CONFIG", "RESETSTAT"]] {
            cmd(command[0]).arg(command[1]).exec(&mut self.connection).unwrap();
        }
        self.waited = waited;
        let told = entries.into_iter().filter(|_| !is_explained).map(|(_, _, micros, arguments, ..)| {
            format!("{micros} µs: {}", String::from_utf8_lossy(&arguments[..2].join(&b' ')))
        });
        told.collect()
    }
}

async fn issued(conversation: &Conversation<'_>) -> Vec<WorkItem> {
    let issue = async |_| {
        let mut issue = conversation.issuing(600_000);
        issue.turn_id = Some(TurnId::parse("turn").unwrap());
        conversation.issue_with(issue).await.unwrap().item
    };
    let mut items: Vec<_> = stream::iter(0..ITEMS).map(issue).buffer_unordered(64).collect().await;
    items.sort_by_key(|item| item.sequence);
    items
}

async fn hold(conversation: &Conversation<'_>, items: &[WorkItem]) {
    let accept = async |item| drop(conversation.accept(item, "\"held\"").await.unwrap());
    stream::iter(items).map(accept).buffer_unordered(64).collect::<Vec<_>>().await;
}

/// Repeats an operation until none of its scripts is too slow. Fails after [`TRIES`] attempts.
pub(super) async fn is_short(what: &str, mut step: impl AsyncFnMut() -> Vec<String>) {
    let mut all = Vec::new();
    for _ in 0..TRIES {
        let slow = step().await;
        if slow.is_empty() {
            return;
        }
        all.push(slow);
    }
    panic!("{what}: {all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_stay_short_at_the_limits() {
    let server = RedisServer::start();
    let mut slow_log = SlowLog::of(&server);
    let limits = Limits { max_held_items: ITEMS, max_awaiting_items: ITEMS, ..ROOMY };
    let clock = callback_ingress::clock::ManualClock::at(START);
    let stage = Stage::in_redis(settings(server.url(0), limits), clock).await;
    let conversation = stage.conversation().await;
    let items = issued(&conversation).await;
    slow_log.take();
    is_short("inspecting awaiting items", async || {
        assert_eq!(conversation.inspect().await.unwrap().unreleased.len() as u64, ITEMS);
        slow_log.take()
    })
    .await;
    is_short("ending awaiting items and removing their timers", async || {
        let other = stage.conversation().await;
        issued(&other).await;
        slow_log.take();
        assert_eq!(other.end().await.unwrap().dropped_awaiting, ITEMS);
        let due = DueConversation { conversation: other.reference(), sequences: Vec::new(), whole: true };
        for _ in 0..ITEMS / 256 {
            stage.store.expire(due.clone(), None).await.unwrap();
        }
        slow_log.take()
    })
    .await;
    assert_eq!(stage.totals().await.awaiting, ITEMS, "only live conversations count");

    hold(&conversation, &items[1..]).await;
    slow_log.take();
    // This chain can be released only once. If it was slow, another conversation is used for the retries below.
    let receipt = conversation.accept(&items[0], "\"first\"").await.unwrap();
    assert_eq!(receipt.delivery, callback_ingress::domain::gate::Delivery::Delivered);
    let page = conversation.read(ITEMS - 1, 10).await.unwrap();
    assert_eq!(
        (page.released, page.envelopes.len()),
        (ITEMS, 1),
        "everything is released before the receipt"
    );
    let first = slow_log.take();
    is_short("releasing held items", async || {
        if first.is_empty() {
            return Vec::new();
        }
        let other = stage.conversation().await;
        let items = issued(&other).await;
        hold(&other, &items[1..]).await;
        slow_log.take();
        other.accept(&items[0], "\"first\"").await.unwrap();
        slow_log.take()
    })
    .await;
    let totals = stage.totals().await;
    assert_eq!((totals.awaiting, totals.held, totals.held_bytes), (0, 0, 0));

    is_short("releasing a part of the held items", async || {
        let other = stage.conversation().await;
        let items = issued(&other).await;
        hold(&other, &items[1..2]).await;
        hold(&other, &items[3..]).await;
        slow_log.take();
        other.accept(&items[0], "\"first\"").await.unwrap();
        let slow = slow_log.take();
        let waiting = stage.store.waiting(100).await.unwrap().conversations;
        assert_eq!((waiting[0].waiting_for.sequence.get(), waiting[0].held), (3, ITEMS - 3));
        other.end().await.unwrap();
        slow
    })
    .await;

    is_short("cancelling a turn", async || {
        let other = stage.conversation().await;
        issued(&other).await;
        slow_log.take();
        let cancelled = other.cancel_turn("turn").await.unwrap();
        assert_eq!((cancelled.cancelled, cancelled.items.len() as u64), (ITEMS, ITEMS));
        assert_eq!(other.read(ITEMS - 1, 10).await.unwrap().released, ITEMS);
        slow_log.take()
    })
    .await;

    is_short("ending held items", async || {
        let other = stage.conversation().await;
        let items = issued(&other).await;
        hold(&other, &items[1..]).await;
        slow_log.take();
        assert_eq!(other.end().await.unwrap().dropped_held, ITEMS - 1);
        slow_log.take()
    })
    .await;
}
