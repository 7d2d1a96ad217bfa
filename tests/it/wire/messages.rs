//! What a refusal tells the caller to do, and what only the log says.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tracing_subscriber::fmt::MakeWriter;

use crate::service::{CALLBACKS, Call, Service};

async fn message(call: Call<'_>, code: (u16, &str)) -> String {
    let reply = call.send().await;
    assert_eq!(reply.verdict(), (code.0, code.1.to_owned()));
    reply.message()
}

#[tokio::test]
async fn wrong_paths_and_methods_are_explained() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let not_found = (404, "NOT_FOUND");
    for (path, advice) in [
        (format!("{CALLBACKS}/"), "remove the trailing slash"),
        (format!("{CALLBACKS}/{}/", item.token), "remove the trailing slash"),
        (format!("/{CALLBACKS}"), "two slashes in a row"),
        ("/api/v1/webhooks/callback".to_owned(), "exactly as it was given"),
    ] {
        let call = service.provider("POST", &path).header("x-callback-token", &item.token).json("1");
        let told = message(call, not_found).await;
        assert!(told.contains(advice) && !told.contains(&item.token), "{path}: {told}");
    }
    let slash = service.platform("GET", "/conversations/");
    assert!(message(slash, not_found).await.contains("remove the trailing slash"));
    let elsewhere = service.platform("POST", "/nowhere");
    assert!(message(elsewhere, not_found).await.contains("exactly as it was given"));

    let not_allowed = (405, "METHOD_NOT_ALLOWED");
    let get = service.provider("GET", CALLBACKS).header("x-callback-token", &item.token);
    assert!(message(get, not_allowed).await.contains("use POST"));
    assert!(message(service.platform("PATCH", "/conversations/a"), not_allowed).await.contains("Allow"));
    assert_eq!(service.state(&item).await, "awaiting");
}

#[tokio::test]
async fn malformed_tokens_are_explained() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let token = item.token.as_str();
    let in_body =
        |value: &str| service.provider("POST", CALLBACKS).json(format!("{{\"callbackToken\":{value}}}"));
    let invalid = (401, "CALLBACK_TOKEN_INVALID");
    for (call, advice) in [
        (service.callback(&format!("Bearer {token}"), "1"), "remove Bearer"),
        (service.callback(&format!("\"{token}\""), "1"), "remove the quotes or spaces"),
        (service.callback(&format!("'{token}"), "1"), "remove the quotes or spaces"),
        (in_body(&format!("\"{token}\\n\"")), "remove the quotes or spaces"),
        (service.callback(&token[..100], "1"), "it is truncated: it has 100 of 116 characters"),
        (service.callback(&format!("{token}="), "1"), "it has 117 characters"),
        (service.callback(&token[4..], "1"), "does not begin with the prefix of a token"),
        (service.callback("cbt_é", "1"), "string of ASCII"),
        (in_body("7"), "string of ASCII"),
    ] {
        let told = message(call, invalid).await;
        assert!(told.contains(advice) && !told.contains(&token[4..20]), "{told}");
    }
    assert_eq!(service.state(&item).await, "awaiting");
}

/// Collects log lines.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The runtime has one thread, so that the subscriber of this thread sees the service's events.
#[tokio::test(flavor = "current_thread")]
async fn defect_of_a_token_is_only_in_the_log() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(lines.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    // With a single subscriber in the process, `tracing` asks only the thread that reaches an event first whether anybody
    // listens; other tests have such threads.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let mut told = Vec::new();
    for (at, defect) in [
        (115, "the token's signature is wrong"),
        // In the first character of the key's id.
        (8, "the token names an unknown key"),
        // In the version.
        (4, "the token is malformed"),
    ] {
        // A new service each time, because repeated refusals have no line of their own.
        let service = Service::on_memory().await;
        let item = service.fresh_tool().await;
        let mut forged = item.token.clone();
        let other = if &forged[at..=at] == "B" { "C" } else { "B" };
        forged.replace_range(at..=at, other);
        told.push(message(service.callback(&forged, "1"), (401, "CALLBACK_TOKEN_INVALID")).await);
        crate::service::until("the request is logged", async || {
            let logged = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
            assert!(!logged.contains(&forged[20..40]), "{logged}");
            logged.contains(defect)
        })
        .await;
    }
    told.dedup();
    assert_eq!(told.len(), 1, "the caller cannot tell them apart: {told:?}");
}
