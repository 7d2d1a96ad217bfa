//! One point: a competitor is started, given work items, warmed up, measured and ended.

use std::time::Duration;

use serde::Serialize;

use crate::field::{Competitor, Running};
use crate::generator::Generator;
use crate::measured_redis::Commands;
use crate::plan::Plan;
use crate::protocol::{Pace, Tally};

/// What a round of a point came to. Times are microseconds of a request.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    /// Requests a second.
    pub(crate) rate: f64,
    /// The bare route's at about the same time; before this is known, its own.
    pub(crate) bare_rate: f64,
    #[serde(flatten)]
    pub(crate) tally: Tally,
    /// Processor time of the server.
    pub(crate) server_us: f64,
    /// Processor time of Redis.
    pub(crate) redis_us: Option<f64>,
    /// Redis' own measure: time in scripts; in commands, where there is no script.
    pub(crate) script_us: Option<f64>,
    /// Redis' commands, those inside scripts included.
    pub(crate) commands: Option<f64>,
    /// Resident memory of the server at the end.
    pub(crate) resident_kib: u64,
}

/// What the processes used up to now.
struct Used {
    server: Duration,
    redis: Option<(Duration, Commands)>,
}

fn used(running: &mut Running) -> Used {
    let redis = running.redis.as_mut().map(|redis| (redis.cpu(), redis.commands()));
    Used { server: running.process.cpu(), redis }
}

/// Does something, and says what each of its requests took.
pub(crate) fn measured(running: &mut Running, work: impl FnOnce() -> Tally) -> Figures {
    let before = used(running);
    let tally = work();
    let after = used(running);
    let requests = tally.requests.max(1) as f64;
    let each = |now: Duration, then: Duration| now.saturating_sub(then).as_secs_f64() * 1e6 / requests;
    let rate = tally.requests as f64 / tally.seconds.max(f64::EPSILON);
    let mut figures = Figures {
        rate,
        bare_rate: rate,
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

/// Starts a competitor with its generator, and issues the plan's items.
pub(crate) fn prepared(competitor: &Competitor, plan: Plan) -> (Running, Generator, Figures) {
    let mut running = competitor.start();
    let mut generator = Generator::start();
    generator.open(&running.target, plan);
    let issued = measured(&mut running, || generator.issue());
    (running, generator, issued)
}

/// The plan's posts in a closed loop: the first part to warm up, the rest measured.
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
