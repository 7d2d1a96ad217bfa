//! `Debug` output of the types that contain secrets.

use std::fmt::Debug;

use bytes::Bytes;
use callback_ingress::app;
use callback_ingress::clock::{Clock, Entropy};
use callback_ingress::config::{Sources, load};
use callback_ingress::domain::gate::{Accept, Issue, Open};
use callback_ingress::domain::ids::{ConversationId, IdempotencyDigest, Sequence};
use callback_ingress::domain::json::Scan;
use callback_ingress::domain::result::CallbackResult;
use callback_ingress::domain::token::{Keyring, TokenFingerprint};
use callback_ingress::domain::work_item::Kind;
use callback_ingress::platform::ServiceKeyDigests;
use callback_ingress::public::Carriers;
use callback_ingress::store::memory::MemoryStore;
use callback_ingress::store::redis::RedisStore;
use callback_ingress::store::{Backend, InstrumentedStore, Store};
use callback_ingress::telemetry::Telemetry;

use super::nothing_leaks;
use super::search::Capture;
use super::tokens::Known;

/// Compact and pretty output.
fn print(captures: &mut Vec<Capture>, name: &str, value: &dyn Debug) {
    captures.push(Capture::new(format!("the Debug of {name}"), format!("{value:?}\n{value:#?}")));
}

#[tokio::test]
async fn debug_output_shows_no_secret() {
    let known = Known::new();
    let key = known.signing_key("k1");
    let password = known.credential("the password of Redis");
    let settings = [
        ("http.public_addr", "127.0.0.1:0".to_owned()),
        ("http.platform_addr", "127.0.0.1:0".to_owned()),
        ("token.keys", format!("[{key:?}, {:?}]", known.signing_key("old"))),
        ("platform.service_keys", format!("[{:?}]", known.credential("the service key"))),
        ("store.url", format!("redis://user:{password}@127.0.0.1:1/0")),
    ];
    let flags = settings.map(|(key, value)| (key.to_owned(), value)).to_vec();
    let variables = vec![("SOMETHING".to_owned(), key)];
    let sources = Sources { flags, variables, ..Sources::default() };
    let captures = &mut Vec::new();

    print(captures, "what is configured", &sources);
    let loaded = load(sources).unwrap();
    let config = &loaded.config;
    print(captures, "the configuration as it was read", &loaded);
    print(captures, "the configuration", config);
    print(captures, "the signing keys", &(&config.token.keys, config.token.keys.keys()));
    print(
        captures,
        "the service keys",
        &(&config.platform.service_keys, config.platform.service_keys.keys()),
    );
    print(captures, "their digests", &ServiceKeyDigests::new(config.platform.service_keys.keys()));
    print(captures, "the carriers", &Carriers::new(&config.token));
    let redis = config.redis().unwrap();
    print(captures, "the settings of Redis", &redis);
    let store = RedisStore::new(&redis, Clock::System).unwrap();
    let store = InstrumentedStore::new(Backend::Redis(Box::new(store)), Telemetry::local());
    print(captures, "the store in Redis", &store);
    print(captures, "a failure of Redis", &store.ping().await);
    print(captures, "the service", &app::build(config, Clock::System, Telemetry::local()).await.unwrap());

    let [first, others @ ..] = config.token.keys.keys() else { panic!("no keys") };
    let ring = Keyring::new(first.clone(), others.to_vec());
    print(captures, "the keyring", &ring);
    let store = MemoryStore::new(Clock::System, config.limits());
    let conversation = ConversationId::parse("call-1").unwrap();
    let opened = Open {
        conversation: conversation.clone(),
        idle_ttl_ms: None,
        traceparent: None,
        attempt: Entropy.attempt_id(),
    };
    store.open(opened).await.unwrap().unwrap();
    let mut items = Vec::new();
    for _ in 0..3 {
        let issue = Issue {
            conversation: conversation.reference(),
            work_item: Entropy.work_item_id(),
            kind: Kind::Tool,
            turn_id: None,
            tool_call_id: None,
            name: None,
            timeout_ms: 60_000,
            heartbeat_timeout_ms: None,
            replay_window_ms: 60_000,
            key_id: ring.signing_key_id(),
            traceparent: None,
            request_traceparent: None,
            idempotency: None,
        };
        items.push(store.issue(issue).await.unwrap().unwrap().item);
    }
    // One is released, one is held.
    for item in [&items[0], &items[2]] {
        let token = ring.sign(conversation.reference(), item);
        known.token("a work item", token.expose());
        print(captures, "a token", &token);
        print(captures, "its fingerprint", &TokenFingerprint::of(token.expose()));
        print(captures, "its claims", &ring.verify(token.expose(), item.issued_at));
        print(captures, "its digest", &IdempotencyDigest::of(token.expose()));
        let body = format!(r#"{{"callbackToken":"{}","result":"{}"}}"#, token.expose(), known.result());
        let scan = Scan::new(body.as_bytes(), ["callbackToken"]).unwrap();
        print(captures, "a body", &scan);
        let body = Bytes::from(scan.without("callbackToken").into_owned());
        let accept = Accept {
            conversation: conversation.reference(),
            work_item: item.id,
            sequence: item.sequence,
            expires_at: item.expires_at,
            result: CallbackResult::of(Kind::Tool, &body).unwrap(),
            request_id: Entropy.request_id(),
            traceparent: None,
            attempt: Entropy.attempt_id(),
        };
        print(captures, "a callback", &accept);
        print(captures, "a receipt", &store.accept(accept).await);
    }
    let page = store.read(conversation.reference(), Some(Sequence::new(0)), 9).await.unwrap().unwrap();
    assert_eq!(page.envelopes.len(), 1);
    print(captures, "a page of a channel", &page);
    print(captures, "a conversation", &store.inspect(conversation.reference()).await);
    print(captures, "the memory store", &store);
    nothing_leaks(&known, captures);
}
