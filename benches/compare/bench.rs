//! The run: its options, its progress, and the known rate of each competitor.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::field::{Competitor, Program};
use crate::measured_redis::Aof;
use crate::options::Options;
use crate::plan::{ITEMS, Order, Plan};
use crate::point::{self, Figures};

/// Number of connections of the default workload.
pub(crate) const CONNECTIONS: usize = 64;
/// Size of a result in the default workload, in bytes.
pub(crate) const BYTES: usize = 512;

/// Number of requests if the rate is not known yet.
const CALIBRATION: usize = 3_000;
/// Number of requests in the self-check.
const SMOKE: usize = 256;
/// Maximum number of requests of a measurement.
const MOST: usize = 500_000;
/// Length of the warm-up, as a share of the measurement.
pub(crate) const WARM_UP: f64 = 0.3;

pub(crate) struct Bench {
    pub(crate) options: Options,
    pub(crate) programs: Vec<Program>,
    /// The folder of the Node peer, or the reason why it is omitted.
    pub(crate) fastify: Result<PathBuf, String>,
    /// Whether progress messages are printed.
    print: bool,
    begin: Instant,
    rates: HashMap<String, f64>,
}

/// The requests of a measurement.
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

    /// Prints the progress to standard error.
    pub(crate) fn progress(&self, message: &str) {
        if self.print {
            let seconds = self.begin.elapsed().as_secs_f64();
            eprintln!("{:>3}:{:04.1}  {message}", (seconds / 60.0).floor(), seconds % 60.0);
        }
    }

    /// The default workload, for this many seconds.
    pub(crate) fn workload(&self, seconds: f64) -> Workload {
        let seconds = self.options.seconds(seconds);
        Workload { order: Order::AsIssued, bytes: BYTES, connections: CONNECTIONS, seconds }
    }

    /// The number of variants to measure: all of them, or one in the self-check.
    pub(crate) fn kinds(&self, all: usize) -> usize {
        if self.options.smoke { 1 } else { all }
    }

    /// Each build of the service on a store.
    pub(crate) fn services(&self, redis: Option<Aof>, log: bool) -> Vec<Competitor> {
        self.programs.iter().map(|program| Competitor::service(program, redis, log)).collect()
    }

    /// The selected competitors. The bare route is always selected.
    pub(crate) fn wanted(&self, competitors: Vec<Competitor>) -> Vec<Competitor> {
        let wanted = |competitor: &Competitor| {
            competitor.is_bare()
                || self.options.only.as_ref().is_none_or(|text| competitor.name.contains(text.as_str()))
        };
        competitors.into_iter().filter(wanted).collect()
    }

    /// The bare route, the hand-written handler, and the service on the memory store and on Redis, with its log.
    pub(crate) fn short_field(&self) -> Vec<Competitor> {
        let mut field = vec![Competitor::bare(), Competitor::handwritten()];
        field.extend(self.services(None, true));
        field.extend(self.services(Some(Aof::Off), true));
        self.wanted(field)
    }

    /// The service on the memory store and on Redis, with its log.
    pub(crate) fn service_field(&self) -> Vec<Competitor> {
        let field = [self.services(None, true), self.services(Some(Aof::Off), true)].concat();
        self.wanted(field)
    }

    /// The number of requests for this many seconds at the known rate.
    pub(crate) fn requests(&mut self, competitor: &Competitor, workload: Workload, seconds: f64) -> usize {
        if self.options.smoke {
            return SMOKE;
        }
        let key = key(competitor, workload);
        if !self.rates.contains_key(&key) {
            let figures = run(competitor, workload, CALIBRATION);
            self.rates.insert(key.clone(), figures.rate);
        }
        // Rounds up to whole blocks of conversations, so that all held results are released.
        let requests = (self.rates[&key] * seconds) as usize;
        requests.next_multiple_of(ITEMS * 64).clamp(ITEMS * 64, MOST)
    }

    /// Measures one round in a closed loop.
    pub(crate) fn closed(&mut self, competitor: &Competitor, workload: Workload) -> Figures {
        let requests = self.requests(competitor, workload, workload.seconds * (1.0 + WARM_UP));
        let figures = run(competitor, workload, requests);
        self.rates.insert(key(competitor, workload), figures.rate);
        figures
    }
}

fn run(competitor: &Competitor, workload: Workload, requests: usize) -> Figures {
    let _one_core = (workload.connections == 1).then(OneCore::new);
    let plan = Plan::of(requests, workload.order, workload.bytes);
    let warm = requests as f64 * WARM_UP / (1.0 + WARM_UP);
    // Stops early if the rate is lower than expected.
    let longest = 3.0 * workload.seconds.max(1.0);
    point::closed(competitor, plan, warm as usize, workload.connections, longest)
}

/// While it exists, started children run on one core. For workloads with one connection: the processes take turns
/// anyway, and on several cores the rate and the latency depend on which cores they wake up on.
pub(crate) struct OneCore {
    all: CpuSet,
}

impl OneCore {
    pub(crate) fn new() -> Self {
        let all = sched_getaffinity(None).unwrap();
        let mut one = CpuSet::new();
        one.set((0..CpuSet::MAX_CPU).find(|&core| all.is_set(core)).unwrap());
        sched_setaffinity(None, &one).unwrap();
        Self { all }
    }
}

impl Drop for OneCore {
    fn drop(&mut self) {
        sched_setaffinity(None, &self.all).unwrap();
    }
}

fn key(competitor: &Competitor, workload: Workload) -> String {
    let Workload { order, bytes, connections, .. } = workload;
    format!("{} {:?} {order:?} {bytes} {connections}", competitor.name, competitor.redis)
}
