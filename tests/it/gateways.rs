//! Request smuggling through real gateways: requests that two parsers can read differently. The service must not
//! respond to a request that the gateway did not forward.
//!
//! The gateway sets an id on each request that it forwards, and logs it. The service returns the id, and a recorder
//! between the two logs it. A smuggled request has no id of the gateway, and a request that follows the rest of a
//! smuggled one gets the response to another request.

mod attacks;
mod program;
mod recorder;
mod shipped;
mod streams;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, timeout};

use self::attacks::{Attack, Direct, FORWARDED_THOUGH_MALFORMED, NO_TRICK, hidden_target, outer_target};
use self::program::{Forwarded, Gateway, Kind};
use self::recorder::{Answer, Recorder};
use crate::service::{Item, PATIENCE, Raw, Service, until};

/// Concurrent attacks: more than the gateways' connections, so that each connection is reused.
const AT_ONCE: usize = 48;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_and_service_agree_on_request_boundaries() {
    agree_on_request_boundaries(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streaming_nginx_and_service_agree_on_request_boundaries() {
    agree_on_request_boundaries(Kind::StreamingNginx).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fastify_and_service_agree_on_request_boundaries() {
    agree_on_request_boundaries(Kind::Fastify).await;
}

/// A sent attack.
#[derive(Debug)]
struct Attempt {
    number: usize,
    attack: Attack,
    /// The work item of the outer request, if it is a callback.
    outer: Option<Item>,
    /// The work item of the hidden request.
    hidden: Item,
}

impl Attempt {
    /// Each attack with each kind of outer request.
    async fn all(service: &Service) -> Vec<Self> {
        let mut all = Vec::new();
        for attack in attacks::all() {
            let kinds: &[bool] = if attack.has_post() { &[false, true] } else { &[false] };
            for &is_callback in kinds {
                let outer = if is_callback { Some(service.fresh_tool().await) } else { None };
                let hidden = service.fresh_tool().await;
                all.push(Self { number: all.len(), attack: attack.clone(), outer, hidden });
            }
        }
        all
    }

    fn bytes(&self) -> Vec<u8> {
        let outer = self.outer.as_ref().map(|item| item.token.as_str());
        self.attack.bytes(self.number, outer, &self.hidden.token)
    }

    /// Shown when the test fails.
    fn name(&self) -> String {
        format!("{} ({}, {})", self.attack.name, self.number, self.outer.is_some())
    }
}

async fn agree_on_request_boundaries(kind: Kind) {
    let service = Service::start(&[("http.trusted_proxies", "[\"127.0.0.1/32\"]")]).await;
    let attempts = Attempt::all(&service).await;
    let recorder = Recorder::to(service.public).await;
    let gateway = block_in_place(|| Gateway::start(kind, recorder.address));
    stream::iter(&attempts)
        .for_each_concurrent(AT_ONCE, async |attempt| {
            let mut raw = Raw::connect(gateway.address).await;
            raw.send(attempt.bytes()).await;
            // A gateway may keep the connection open.
            drop(timeout(Duration::from_secs(4), raw.closed()).await);
            drop(raw);
            // Another client, whose request may reuse the connection to the service.
            let mut raw = Raw::connect(gateway.address).await;
            raw.send(format!(
                "GET /innocent-{} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n",
                attempt.number
            ))
            .await;
            let said = String::from_utf8(raw.closed().await).unwrap();
            let is_own = said.starts_with("HTTP/1.1 404 ") && said.matches("HTTP/1.1").count() == 1;
            assert!(is_own, "after {}: {said}\n{}", attempt.name(), gateway.log());
        })
        .await;
    until("the gateway ends its idle connections", async || recorder.open() == 0).await;
    let answers = recorder.answers();
    let since = Instant::now();
    let forwarded = loop {
        let forwarded = block_in_place(|| gateway.forwarded());
        let Some(disagreement) = disagreement(&forwarded, &answers) else { break forwarded };
        // The gateway may write its last log lines late.
        assert!(since.elapsed() < PATIENCE, "{disagreement}\n{}", gateway.log());
        sleep(Duration::from_millis(50)).await;
    };
    let reused = answers.len() > 2 * recorder.connections();
    assert!(reused, "{} answers on {} connections", answers.len(), recorder.connections());
    for request in forwarded.iter().filter(|request| request.is_refused()) {
        let number = request.target.rsplit_once('=').and_then(|(_, number)| number.parse::<usize>().ok());
        let name = number.and_then(|number| attempts.get(number)).map(|attempt| attempt.attack.name);
        let is_known = name.is_some_and(|name| FORWARDED_THOUGH_MALFORMED.contains(&name));
        assert!(is_known, "the service refused as no HTTP what the gateway sent: {name:?}, {request:?}");
    }
    let spent: HashSet<&str> = forwarded.iter().filter_map(Forwarded::spends).collect();
    for attempt in &attempts {
        let hidden = (&attempt.hidden, hidden_target(attempt.number));
        let outer = attempt.outer.as_ref().map(|item| (item, outer_target(attempt.number)));
        for (item, target) in outer.into_iter().chain([hidden]) {
            let expected = spent.contains(target.as_str());
            let is_spent = service.state(item).await != "awaiting";
            assert_eq!(is_spent, expected, "{target} of {}", attempt.name());
            // Otherwise the test would check nothing.
            assert!(is_spent || attempt.attack.name != NO_TRICK, "{target}");
        }
    }
}

/// The first entry that only one of the two records has.
fn disagreement(forwarded: &[Forwarded], answers: &[Answer]) -> Option<String> {
    let meant: HashSet<&str> = forwarded.iter().map(|request| request.id.as_str()).collect();
    let mut answered: HashMap<&str, &str> = HashMap::new();
    let mut refused = 0;
    for answer in answers {
        let Some(id) = answer.request_id.as_deref() else {
            refused += 1;
            continue;
        };
        if !meant.contains(id) {
            return Some(format!("the service answered what the gateway did not send: {answer:?}"));
        }
        if answered.insert(id, &answer.status).is_some() {
            return Some(format!("the service answered twice: {answer:?}"));
        }
    }
    let malformed: Vec<&Forwarded> = forwarded.iter().filter(|request| request.is_refused()).collect();
    if malformed.len() != refused {
        return Some(format!("the service refused {refused} that are no HTTP, and not {malformed:?}"));
    }
    // The service may answer a request that the gateway has aborted.
    let mut answered_requests = forwarded.iter().filter(|request| !request.answered.is_empty());
    let others = answered_requests.find(|request| {
        request.answered != request.id || answered.get(request.id.as_str()) != Some(&request.status.as_str())
    });
    others.map(|request| format!("the gateway took another's answer: {request:?}"))
}

#[test]
fn every_disagreement_is_detected() {
    let answer = |status: &str, id: Option<&str>| Answer {
        status: status.to_owned(),
        request_id: id.map(str::to_owned),
    };
    let forwarded = |id: &str, status: &str, answered: &str| Forwarded {
        id: id.to_owned(),
        status: status.to_owned(),
        answered: answered.to_owned(),
        method: "GET".to_owned(),
        target: "/".to_owned(),
    };
    let meant = [forwarded("a", "404", "a"), forwarded("b", "-", "")];
    let (a, b) = (answer("404", Some("a")), answer("404", Some("b")));
    assert_eq!(disagreement(&meant, &[a.clone(), b.clone()]), None);
    assert_eq!(disagreement(&meant, std::slice::from_ref(&a)), None);
    assert_eq!(disagreement(&[forwarded("a", "400", "")], &[answer("400", None)]), None);
    for (said, answers) in [
        ("no HTTP", vec![a.clone(), answer("400", None)]),
        ("did not send", vec![a.clone(), answer("404", Some("c"))]),
        ("twice", vec![a.clone(), a.clone()]),
        ("another's", vec![b.clone()]),
        ("another's", vec![answer("202", Some("a"))]),
    ] {
        let noticed = disagreement(&meant, &answers).unwrap();
        assert!(noticed.contains(said), "{noticed}");
    }
    let noticed = disagreement(&[forwarded("a", "404", "b"), forwarded("b", "-", "")], &[a, b]).unwrap();
    assert!(noticed.contains("another's"), "{noticed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smuggled_request_is_ignored_without_a_gateway() {
    // Longer than the test waits, so only the service closes connections.
    let service = Service::start(&[("http.keep_alive_timeout_ms", "600000")]).await;
    let attempts = Attempt::all(&service).await;
    stream::iter(&attempts)
        .for_each_concurrent(AT_ONCE, async |attempt| {
            let mut raw = Raw::connect(service.public).await;
            raw.send(attempt.bytes()).await;
            if attempt.attack.direct == Direct::InBody {
                raw.finish().await;
            }
            let answers = recorder::answers(&raw.closed().await);
            let is_heard = service.state(&attempt.hidden).await != "awaiting";
            // The outer request, the hidden callback, and the request after it.
            let (expected, count) = match attempt.attack.direct {
                Direct::Hears(_) => (true, answers.len() == 3),
                Direct::HearsRest(_) => (false, answers.len() == 2),
                Direct::Closes | Direct::InBody => (false, answers.len() <= 1),
            };
            assert!(is_heard == expected && count, "{}: {answers:?}", attempt.name());
        })
        .await;
}
