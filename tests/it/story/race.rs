//! Many clients use one token.

use std::collections::BTreeMap;
use std::sync::Mutex;

use futures_util::future::join_all;
use tokio::sync::Barrier;

use crate::service::{Item, Kind, on_every_topology};

const ROUNDS: usize = 200;
const CLIENTS: usize = 64;

/// The bodies sent with one token, by verdict.
type Told = BTreeMap<(u16, String), Vec<String>>;

on_every_topology!(one_of_many_concurrent_callbacks_is_first);

async fn one_of_many_concurrent_callbacks_is_first(kind: Kind) {
    let _turn = super::turn().await;
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let mut items: Vec<Item> = Vec::new();
    for _ in 0..ROUNDS {
        items.push(deployment.any().tool(&conversation).await);
    }
    let together = Barrier::new(CLIENTS);
    let told = Mutex::new(vec![Told::new(); ROUNDS]);
    join_all((0..CLIENTS).map(|client| {
        let (deployment, items, together, told) = (&deployment, &items, &together, &told);
        async move {
            for (round, item) in items.iter().enumerate() {
                let body = format!("{{\"round\":{round},\"by\":{client}}}");
                together.wait().await;
                let verdict = deployment.any().callback(&item.token, body.clone()).verdict().await;
                told.lock().unwrap()[round].entry(verdict).or_default().push(body);
            }
        }
    }))
    .await;
    let channel = deployment.any().channel(&conversation, ROUNDS).await;
    for (told, envelope) in told.into_inner().unwrap().iter().zip(&channel) {
        let counts: Vec<_> =
            told.iter().map(|((status, word), by)| (*status, word.as_str(), by.len())).collect();
        assert_eq!(counts, [(202, "delivered", 1), (409, "CALLBACK_TOKEN_USED", CLIENTS - 1)]);
        let winner = &told[&(202, "delivered".to_owned())][0];
        assert!(envelope.contains(&format!("\"result\":{winner},")), "{winner} won, and not {envelope}");
    }
}
