//! One measurement: starts a competitor, issues work items, warms up, measures and stops it.

use std::time::Duration;

use serde::Serialize;

use crate::field::{Competitor, Running};
use crate::generator::Generator;
use crate::measured_redis::Commands;
use crate::plan::Plan;
use crate::protocol::{Pace, Tally};

/// The figures of one round. Times are in microseconds per request.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    /// Requests per second.
    pub(crate) rate: f64,
    #[serde(flatten)]
    pub(crate) tally: Tally,
    /// Processor time of the server.
    pub(crate) server_us: f64,
    /// Processor time of Redis.
    pub(crate) redis_us: Option<f64>,
    /// Time in scripts as reported by Redis, or in commands if there is no script.
    pub(crate) script_us: Option<f64>,
    /// Number of Redis commands, including those inside scripts.
    pub(crate) commands: Option<f64>,
    /// Resident memory of the server at the end.
    pub(crate) resident_kib: u64,
}

/// The resources that the processes have used so far.
struct Used {
    server: Duration,
    redis: Option<(Duration, Commands)>,
}

fn used(running: &mut Running) -> Used {
    let redis = running.redis.as_mut().map(|redis| (redis.cpu(), redis.commands()));
    Used { server: running.process.cpu(), redis }
}

/// Runs a load, and returns the resources per request.
pub(crate) fn measured(running: &mut Running, work: impl FnOnce() -> Tally) -> Figures {
    let before = used(running);
    let tally = work();
    let after = used(running);
    let requests = tally.requests.max(1) as f64;
    let each = |now: Duration, then: Duration| now.saturating_sub(then).as_secs_f64() * 1e6 / requests;
    let rate = tally.requests as f64 / tally.seconds.max(f64::EPSILON);
    let mut figures = Figures {
        rate,
        server_us: each(after.server, before.server),
        resident_kib: running.process.resident(),
        tally,
        ..Figures::default()
    };
    if let (Some((cpu, commands)), Some((cpu_before, commands_before))) = (after.redis, before.redis) {
        let (calls, usec) = commands.since(&commands_before);
        figures.redis_us = Some(each(cpu, cpu_before));
        figures.script_us = Some(usec as f64 / requests);
        figures.commands = Some(calls as f64 / requests);
    }
    figures
}

/// Starts a competitor and a load generator, and issues the items of the plan.
pub(crate) fn prepared(competitor: &Competitor, plan: Plan) -> (Running, Generator, Figures) {
    let mut running = competitor.start();
    let mut generator = Generator::start();
    generator.open(&running.target, plan);
    let issued = measured(&mut running, || generator.issue());
    (running, generator, issued)
}

/// Posts the plan in a closed loop. The first part warms up, the rest is measured.
pub(crate) fn closed(
    competitor: &Competitor,
    plan: Plan,
    warm: usize,
    connections: usize,
    seconds: f64,
) -> Figures {
    let (mut running, mut generator, _) = prepared(competitor, plan);
    let pace = Pace::Closed { connections, seconds };
    generator.post(0, warm, pace);
    measured(&mut running, || generator.post(warm, usize::MAX, pace))
}
