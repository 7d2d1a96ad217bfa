//! The run: its options, its progress, and what is known of each competitor's rate.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use crate::field::{Competitor, Program};
use crate::measured_redis::Aof;
use crate::options::Options;
use crate::plan::{ITEMS, Order, Plan};
use crate::point::{self, Figures};

/// Connections of the standard point.
pub(crate) const CONNECTIONS: usize = 64;
/// Size of the standard result.
pub(crate) const BYTES: usize = 512;

/// Requests of a point whose rate is not known yet.
const CALIBRATION: usize = 3_000;
/// Requests of a point that only shows that it works.
const SMOKE: usize = 256;
/// Most requests of a point.
const MOST: usize = 500_000;
/// What is measured is preceded by so much of it.
pub(crate) const WARM_UP: f64 = 0.3;

pub(crate) struct Bench {
    pub(crate) options: Options,
    pub(crate) programs: Vec<Program>,
    /// The folder of the peer on Node, or why it is left out.
    pub(crate) fastify: Result<PathBuf, String>,
    /// Whether progress is told.
    print: bool,
    begin: Instant,
    rates: HashMap<String, f64>,
}

/// What is posted, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) order: Order,
    pub(crate) bytes: usize,
    pub(crate) connections: usize,
    pub(crate) seconds: f64,
}

impl Bench {
    pub(crate) fn new(options: Options, fastify: Result<PathBuf, String>, print: bool) -> Self {
        let programs = options.programs();
        Self { options, programs, fastify, print, begin: Instant::now(), rates: HashMap::new() }
    }

    /// Says on standard error how far it is.
    pub(crate) fn progress(&self, message: &str) {
        if self.print {
            let seconds = self.begin.elapsed().as_secs_f64();
            eprintln!("{:>3}:{:04.1}  {message}", (seconds / 60.0).floor(), seconds % 60.0);
        }
    }

    /// The standard workload, for so many seconds.
    pub(crate) fn workload(&self, seconds: f64) -> Workload {
        let seconds = self.options.seconds(seconds);
        Workload { order: Order::AsIssued, bytes: BYTES, connections: CONNECTIONS, seconds }
    }

    /// How many of so many kinds are measured: the self-check needs one.
    pub(crate) fn kinds(&self, all: usize) -> usize {
        if self.options.smoke { 1 } else { all }
    }

    /// Each build of the service on a store.
    pub(crate) fn services(&self, redis: Option<Aof>, log: bool) -> Vec<Competitor> {
        self.programs.iter().map(|program| Competitor::service(program, redis, log)).collect()
    }

    /// Those that are asked for, the bare route always.
    pub(crate) fn wanted(&self, competitors: Vec<Competitor>) -> Vec<Competitor> {
        let wanted = |competitor: &Competitor| {
            competitor.is_bare()
                || self.options.only.as_ref().is_none_or(|text| competitor.name.contains(text.as_str()))
        };
        competitors.into_iter().filter(wanted).collect()
    }

    /// The bare route, the hand-written handler, and the service on the embedded store and on Redis, with its log.
    pub(crate) fn short_field(&self) -> Vec<Competitor> {
        let mut field = vec![Competitor::bare(), Competitor::handwritten()];
        field.extend(self.services(None, true));
        field.extend(self.services(Some(Aof::Off), true));
        self.wanted(field)
    }

    /// The service on the embedded store and on Redis, with its log.
    pub(crate) fn service_field(&self) -> Vec<Competitor> {
        let field = [self.services(None, true), self.services(Some(Aof::Off), true)].concat();
        self.wanted(field)
    }

    /// How many requests fill so many seconds, as far as is known.
    pub(crate) fn requests(&mut self, competitor: &Competitor, workload: Workload, seconds: f64) -> usize {
        if self.options.smoke {
            return SMOKE;
        }
        let key = key(competitor, workload);
        if !self.rates.contains_key(&key) {
            let figures = run(competitor, workload, CALIBRATION);
            self.rates.insert(key.clone(), figures.rate);
        }
        // Whole conversations of a block, so that what is held is also released.
        let requests = (self.rates[&key] * seconds) as usize;
        requests.next_multiple_of(ITEMS * 64).clamp(ITEMS * 64, MOST)
    }

    /// One round of a point in a closed loop.
    pub(crate) fn closed(&mut self, competitor: &Competitor, workload: Workload) -> Figures {
        let requests = self.requests(competitor, workload, workload.seconds * (1.0 + WARM_UP));
        let figures = run(competitor, workload, requests);
        self.rates.insert(key(competitor, workload), figures.rate);
        figures
    }
}

fn run(competitor: &Competitor, workload: Workload, requests: usize) -> Figures {
    let plan = Plan::of(requests, workload.order, workload.bytes);
    let warm = requests as f64 * WARM_UP / (1.0 + WARM_UP);
    // Where it is slower than thought, it is cut short.
    let longest = 3.0 * workload.seconds.max(1.0);
    point::closed(competitor, plan, warm as usize, workload.connections, longest)
}

fn key(competitor: &Competitor, workload: Workload) -> String {
    let Workload { order, bytes, connections, .. } = workload;
    format!("{} {order:?} {bytes} {connections}", competitor.name)
}
