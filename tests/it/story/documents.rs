//! Random JSON is delivered byte for byte.

use futures_util::stream::{self, StreamExt};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::service::{Deployment, Item, Kind, on_every_topology};

const DOCUMENTS: usize = 1_000;
const AT_ONCE: usize = 16;

on_every_topology!(random_json_is_delivered_unchanged);

/// White space of any kind.
fn space(random: &mut StdRng) -> String {
    let length = if random.random_bool(0.3) { random.random_range(1..4) } else { 0 };
    (0..length).map(|_| *[' ', '\t', '\n', '\r'].choose(random).unwrap()).collect()
}

fn number(random: &mut StdRng) -> String {
    match random.random_range(0..6) {
        0 => random.random::<i64>().to_string(),
        1 => "9".repeat(random.random_range(1..400)),
        2 => format!("-0.{}", "0123456789".repeat(random.random_range(1..20))),
        3 => format!("1.{}E+{}", random.random::<u64>(), random.random_range(0..9_999)),
        4 => "-0".to_owned(),
        _ => format!("{:e}", random.random::<f64>()),
    }
}

fn string(random: &mut StdRng) -> String {
    const PIECES: [&str; 22] = [
        "a",
        "é",
        "😀",
        "👩‍👩‍👧",
        "字",
        "\u{2028}",
        "\u{7f}",
        "\u{fffd}",
        "\u{feff}",
        "\\\"",
        "\\\\",
        "\\/",
        "\\b",
        "\\n",
        "\\r",
        "\\u0000",
        "\\u00e9",
        "\\ud83d\\ude00",
        "{",
        "}",
        "data: ",
        "\u{10ffff}",
    ];
    let pieces: String = (0..random.random_range(0..12)).map(|_| *PIECES.choose(random).unwrap()).collect();
    format!("\"{pieces}\"")
}

/// A random JSON text.
fn document(random: &mut StdRng, depth: u32) -> String {
    let (before, after) = (space(random), space(random));
    let kinds = if depth == 0 { 4 } else { 6 };
    let value = match random.random_range(0..kinds) {
        0 => ["true", "false", "null"].choose(random).unwrap().to_string(),
        1 => number(random),
        2 | 3 => string(random),
        4 => {
            let values: Vec<String> =
                (0..random.random_range(0..6)).map(|_| document(random, depth - 1)).collect();
            format!("[{}{}]", space(random), values.join(","))
        }
        _ => {
            let members: Vec<String> = (0..random.random_range(0..6))
                .map(|_| {
                    let (key, gap) = (string(random), space(random));
                    format!("{}{key}{gap}:{}", space(random), document(random, depth - 1))
                })
                .collect();
            format!("{{{}{}}}", space(random), members.join(","))
        }
    };
    format!("{before}{value}{after}")
}

/// The result within an envelope.
fn result(envelope: &str) -> &str {
    let (_, result) = envelope.split_once(",\"result\":").unwrap();
    result.rsplit_once(",\"issuedAt\":").unwrap().0
}

/// The entries of the channel's stream in Redis.
fn in_redis(deployment: &Deployment, channel: &str) -> Option<Vec<Vec<u8>>> {
    let mut connection = deployment.redis.as_ref()?.connection(0);
    let entries: ::redis::streams::StreamRangeReply =
        ::redis::cmd("XRANGE").arg(channel).arg("-").arg("+").query(&mut connection).unwrap();
    for (nth, entry) in entries.ids.iter().enumerate() {
        assert!(entry.id.ends_with(&format!("-{}", nth + 1)), "{}", entry.id);
    }
    Some(entries.ids.iter().map(|entry| result(&entry.get::<String>("envelope").unwrap()).into()).collect())
}

async fn random_json_is_delivered_unchanged(kind: Kind) {
    let _turn = super::turn().await;
    let deployment = kind.deploy(&[]).await;
    let opened = deployment.any().platform("PUT", "/conversations/verbatim").send().await.json();
    let mut random = StdRng::seed_from_u64(2_026);
    let mut posts: Vec<(Item, String)> = Vec::new();
    for _ in 0..DOCUMENTS {
        let document = document(&mut random, 4);
        serde_json::from_str::<&serde_json::value::RawValue>(&document).expect("the test makes JSON");
        posts.push((deployment.any().tool("verbatim").await, document));
    }
    stream::iter(posts.iter().rev())
        .for_each_concurrent(AT_ONCE, |(item, document)| {
            let service = deployment.any();
            async move {
                let reply = service.callback(&item.token, document.clone()).send().await;
                assert_eq!(reply.status, 202, "{document:?}: {}", reply.text());
            }
        })
        .await;
    if let Some(found) = in_redis(&deployment, opened["channel"]["redisStream"].as_str().unwrap_or_default())
    {
        assert_eq!(found.len(), DOCUMENTS);
        for (found, (_, document)) in found.iter().zip(&posts) {
            assert_eq!(found, document.as_bytes(), "{document:?}");
        }
    }
    // Events contain line feeds in place of carriage returns, which occur only between JSON values, and escapes in
    // place of characters that some clients treat as line ends, which occur only in strings.
    for (envelope, (_, document)) in deployment.any().channel("verbatim", DOCUMENTS).await.iter().zip(&posts)
    {
        let document = document.replace("\r\n", "\n").replace('\r', "\n");
        let document = document.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
        let document = document.replace('\u{85}', "\\u0085");
        let expected = format!("\"outcome\":\"succeeded\",\"result\":{document},\"issuedAt\":");
        assert!(envelope.contains(&expected), "{document:?} became {envelope:?}");
    }
}
