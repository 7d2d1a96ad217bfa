//! Results arrive in any order, and twice; the channel has each once, in order of issue.

use std::collections::BTreeMap;
use std::sync::Mutex;

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::service::{Event, Item, Kind, Reply, on_every_topology};

const ITEMS: u64 = 200;
const CLIENTS: usize = 32;

on_every_topology!(conversations_are_complete_and_in_order);

/// The result of an item.
fn result(item: &Item) -> String {
    format!("{{\"of\":\"{}\",\"n\":{}}}", item.conversation, item.sequence)
}

/// A receipt without the fields that a repetition may change.
fn facts(reply: &Reply) -> Value {
    let mut facts = reply.json();
    for changing in ["status", "waitingFor", "replayed"] {
        facts.as_object_mut().unwrap().remove(changing);
    }
    facts
}

async fn conversations_are_complete_and_in_order(kind: Kind) {
    let _turn = super::turn().await;
    let deployment = kind.deploy(&[]).await;
    let conversations = [deployment.any().open().await, deployment.any().open().await];
    let mut items = Vec::new();
    for _ in 0..ITEMS {
        for conversation in &conversations {
            items.push(deployment.any().tool(conversation).await);
        }
    }
    let mut random = StdRng::seed_from_u64(42);
    let mut posts: Vec<&Item> = items.iter().collect();
    posts.extend(items.iter().filter(|_| random.random_bool(0.3)));
    let twice = posts.len() - items.len();
    assert!((90..150).contains(&twice), "about 30 % are sent twice, not {twice}");
    posts.shuffle(&mut random);
    let queue = Mutex::new(posts);
    let replies: Mutex<BTreeMap<&str, Vec<Reply>>> = Mutex::default();
    join_all((0..CLIENTS).map(|_| async {
        loop {
            let next = queue.lock().unwrap().pop();
            let Some(item) = next else { return };
            let reply = deployment.any().callback(&item.token, result(item)).send().await;
            replies.lock().unwrap().entry(&item.id).or_default().push(reply);
        }
    }))
    .await;
    let replies = replies.into_inner().unwrap();
    let mut repeated = 0;
    for item in &items {
        let of_item = &replies[item.id.as_str()];
        let (first, again): (Vec<&Reply>, Vec<&Reply>) =
            of_item.iter().partition(|reply| reply.status == 202);
        assert_eq!(first.len(), 1, "one callback is the first: {of_item:?}");
        assert_eq!(facts(first[0])["sequence"], item.sequence);
        for reply in again {
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert_eq!(facts(reply), facts(first[0]));
            assert_eq!(reply.json()["replayed"], true);
            repeated += 1;
        }
    }
    assert_eq!(repeated, twice);
    for conversation in &conversations {
        deployment.any().end(conversation).await;
        let events = deployment.any().events(conversation, "?from=0").await.rest().await;
        let (end, envelopes) = events.split_last().unwrap();
        assert_eq!(end.name, "end");
        let sequences: Vec<u64> = envelopes.iter().map(Event::sequence).collect();
        assert_eq!(sequences, (1..=ITEMS).collect::<Vec<_>>());
        let of_conversation = items.iter().filter(|item| &item.conversation == conversation);
        for (event, item) in envelopes.iter().zip(of_conversation) {
            assert!(event.data.contains(&format!("\"result\":{},", result(item))), "{}", event.data);
        }
    }
}
