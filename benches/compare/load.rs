//! The load generator: a separate process, so that its processor time does not count as the service's. It reads
//! commands from standard input, and exits when that ends.

mod connection;
mod events;
mod http;
mod issue;
mod run;

use std::io::{BufRead, Write};

use self::issue::Items;
use self::run::Request;
use crate::protocol::{Command, Pace, Target};

/// How many connections issue work items.
const ISSUING: usize = 64;

/// What the last commands prepared.
struct Prepared {
    target: Target,
    items: Items,
    requests: Vec<Request>,
    body: Vec<u8>,
}

pub(crate) fn run() {
    let mut prepared = None;
    for line in std::io::stdin().lock().lines() {
        let reply = answer(serde_json::from_str(&line.unwrap()).unwrap(), &mut prepared);
        let mut out = std::io::stdout().lock();
        writeln!(out, "{reply}").unwrap();
        out.flush().unwrap();
    }
}

fn answer(command: Command, prepared: &mut Option<Prepared>) -> String {
    if let Command::Open { target, plan } = command {
        let (items, tally) = Items::open(&target, plan, ISSUING);
        *prepared = Some(Prepared { target, items, requests: Vec::new(), body: http::result(plan.bytes) });
        return serde_json::to_string(&tally).unwrap();
    }
    let prepared = prepared.as_mut().unwrap();
    match command {
        Command::Open { .. } => unreachable!("answered above"),
        Command::Issue => {
            let tally = prepared.items.issue(&prepared.target);
            prepared.requests = prepared.items.requests();
            serde_json::to_string(&tally).unwrap()
        }
        Command::Post { from, to, pace } => {
            let to = to.min(prepared.requests.len());
            let requests = &prepared.requests[from.min(to)..to];
            let address = prepared.target.public;
            let tally = match pace {
                Pace::Closed { connections, seconds } => {
                    run::closed(address, requests, &prepared.body, connections, seconds)
                }
                Pace::Open { rate } => run::open(address, requests, &prepared.body, rate),
            };
            serde_json::to_string(&tally).unwrap()
        }
        Command::Follow { posts, pause_ms } => {
            let requests = &prepared.requests[..posts.min(prepared.requests.len())];
            let latencies =
                events::follow(&prepared.target, &prepared.items, requests, &prepared.body, pause_ms);
            serde_json::to_string(&latencies).unwrap()
        }
    }
}
