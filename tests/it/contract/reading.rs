//! Guarantee 12: every change of a channel notifies its listeners. Also paged reads of a channel.

use std::time::Duration;

use callback_ingress::domain::work_item::Outcome;
use callback_ingress::store::{PAGE_BYTES, Store};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::conversation::Envelope;
use crate::stage::{Backend, on_every_store};

on_every_store!(
    channel_is_read_in_pages,
    page_is_bounded_in_bytes,
    notified_reader_sees_every_change,
    changes_of_another_instance_notify,
    notification_is_for_one_channel,
    every_listener_of_a_channel_is_notified,
);

/// Far longer than a notification takes.
const PATIENCE: Duration = Duration::from_secs(10);

async fn channel_is_read_in_pages(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let items: [_; 7] = conversation.issue_many(1_000).await;
    for item in &items[..5] {
        conversation.accept(item, &item.sequence.to_string()).await.unwrap();
    }
    let read = async |after, count| {
        let page = conversation.read(after, count).await.unwrap();
        assert_eq!((page.released, page.ended), (5, false), "whatever is asked for");
        page.envelopes.iter().map(|envelope| Envelope::read(envelope).sequence).collect::<Vec<_>>()
    };
    assert_eq!(read(0, 100).await, [1, 2, 3, 4, 5]);
    assert_eq!(read(0, 2).await, [1, 2]);
    assert_eq!(read(2, 2).await, [3, 4]);
    assert_eq!(read(4, 2).await, [5]);
    assert!(read(5, 2).await.is_empty());
    assert!(read(6, 2).await.is_empty(), "beyond the end");
    assert!(read(u64::MAX, 2).await.is_empty());
    assert!(read(0, 0).await.is_empty());
    let whole = conversation.read(0, 100).await.unwrap().envelopes;
    assert_eq!(
        conversation.read(3, 1).await.unwrap().envelopes,
        whole[3..4],
        "a page holds the same envelopes"
    );
}

async fn page_is_bounded_in_bytes(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let items: [_; 5] = conversation.issue_many(1_000).await;
    let result = |bytes| format!("\"{}\"", "x".repeat(bytes));
    for (item, bytes) in items.iter().zip([100_000, 100_000, 100_000, PAGE_BYTES, 1]) {
        conversation.accept(item, &result(bytes)).await.unwrap();
    }
    let read = async |after| conversation.read(after, 100).await.unwrap().envelopes.len();
    assert_eq!([read(0).await, read(2).await, read(3).await, read(4).await], [2, 1, 1, 1]);
}

async fn notified_reader_sees_every_change(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let soon = conversation.issue(10).await;
    let sooner = conversation.issue(5).await;
    let [third, fourth, fifth, _] = conversation.issue_many(1_000).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let reader = async {
        let mut wake = stage.store.watch(conversation.reference());
        let mut last = None;
        loop {
            let page = conversation.read(0, 100).await.unwrap();
            let now = (page.released, page.ended);
            if last != Some(now) {
                last = Some(now);
                tell.send(now).unwrap();
            }
            if page.ended {
                return;
            }
            wake.changed().await;
        }
    };
    let changes = async {
        let mut next = async || timeout(PATIENCE, told.recv()).await.expect("a wake was lost").unwrap();
        assert_eq!(next().await, (0, false));
        stage.wait_until(soon.deadline);
        conversation.expire(&[&sooner]).await;
        assert_eq!(next().await, (2, false), "timers");
        conversation.accept(&third, "3").await.unwrap();
        assert_eq!(next().await, (3, false), "a callback");
        conversation.accept(&fifth, "5").await.unwrap();
        conversation.cancel(&fourth).await.unwrap();
        assert_eq!(next().await, (5, false), "a cancellation");
        conversation.end().await.unwrap();
        assert_eq!(next().await, (5, true), "the end");
    };
    tokio::join!(reader, changes);
}

async fn changes_of_another_instance_notify(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let elsewhere = stage.seen_from_elsewhere().await;
    let theirs = elsewhere.named(conversation.id.clone());
    for number in 1..=20 {
        let mut wake = stage.store.watch(conversation.reference());
        let item = conversation.issue(1_000).await;
        theirs.accept(&item, "1").await.unwrap();
        let released = async {
            while conversation.read(0, 100).await.unwrap().released < number {
                wake.changed().await;
            }
        };
        timeout(PATIENCE, released).await.expect("a wake was lost");
    }
}

async fn notification_is_for_one_channel(backend: Backend) {
    let stage = backend.stage().await;
    let (ours, theirs) = (stage.conversation().await, stage.conversation().await);
    let (our_item, their_item) = (ours.issue(1_000).await, theirs.issue(1_000).await);
    let mut our_wake = stage.store.watch(ours.reference());
    let mut their_wake = stage.store.watch(theirs.reference());
    // A new subscription notifies its listener once; the memory store has no subscriptions.
    if !matches!(backend, Backend::Memory) {
        timeout(PATIENCE, async { tokio::join!(our_wake.changed(), their_wake.changed()) }).await.unwrap();
    }
    theirs.accept(&their_item, "1").await.unwrap();
    timeout(PATIENCE, their_wake.changed()).await.expect("a wake was lost");
    assert!(futures_util::FutureExt::now_or_never(our_wake.changed()).is_none());
    ours.accept(&our_item, "1").await.unwrap();
    timeout(PATIENCE, our_wake.changed()).await.expect("a wake was lost");
    assert_eq!(ours.channel().await, [(1, Outcome::Succeeded)]);
}

async fn every_listener_of_a_channel_is_notified(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(1_000).await;
    let gone = stage.store.watch(conversation.reference());
    let watchers = (0..10).map(|_| async {
        let mut wake = stage.store.watch(conversation.reference());
        while conversation.read(0, 1).await.unwrap().released == 0 {
            wake.changed().await;
        }
    });
    drop(gone);
    let all = futures_util::future::join_all(watchers);
    let settle = conversation.accept(&item, "1");
    let (_, receipt) = tokio::join!(timeout(PATIENCE, all), settle);
    receipt.unwrap();
}
