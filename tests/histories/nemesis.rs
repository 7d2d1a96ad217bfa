//! Injects faults into a deployment and repairs it.

use std::thread::sleep;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use test_support::proxy::Cut;
use test_support::redis_commands::ask;

use crate::deployment::{Deployment, Kind};
use crate::plan::SPAN_MS;
use crate::record::{Outage, Stopwatch};

/// The faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// An instance is killed and restarted.
    KillReplica,
    /// Redis is killed and restarted.
    KillRedis,
    /// An instance is suspended.
    PauseReplica,
    /// Redis is suspended.
    PauseRedis,
    /// Connections to Redis close before a script call.
    CutCall,
    /// Connections to Redis close after a script call, before its reply.
    CutAnswer,
    /// Connections to Redis close in the middle of a reply.
    CutHalfAnswer,
    /// Connections to Redis are slow.
    Delay,
    /// Redis' script cache is flushed.
    FlushScripts,
    /// An instance's system clock is stepped.
    StepClock,
    /// A Redis primary is killed, and restarted after the failover.
    FailOver,
    /// The same, after its replicas have received no writes for a while.
    FailOverBehind,
    /// Hash slots with conversations migrate between nodes of a cluster.
    MoveSlot,
}

impl Fault {
    pub(crate) const ALL: [Self; 13] = [
        Self::KillReplica,
        Self::KillRedis,
        Self::PauseReplica,
        Self::PauseRedis,
        Self::CutCall,
        Self::CutAnswer,
        Self::CutHalfAnswer,
        Self::Delay,
        Self::FlushScripts,
        Self::StepClock,
        Self::FailOver,
        Self::FailOverBehind,
        Self::MoveSlot,
    ];

    /// Whether a deployment of this kind must survive it. The memory store is lost with its process and uses its clock.
    pub(crate) const fn fits(self, kind: Kind) -> bool {
        match kind {
            Kind::Memory => matches!(self, Self::PauseReplica),
            Kind::Durable(_) | Kind::Forgetful(_) => !self.takes_several_servers(),
            Kind::Sentinels { .. } | Kind::Cluster { .. } => match self {
                Self::MoveSlot => matches!(kind, Kind::Cluster { .. }),
                Self::KillReplica | Self::PauseReplica | Self::FlushScripts | Self::StepClock => true,
                _ => self.takes_several_servers(),
            },
        }
    }

    const fn takes_several_servers(self) -> bool {
        matches!(self, Self::FailOver | Self::FailOverBehind | Self::MoveSlot)
    }

    const fn fails_over(self) -> bool {
        matches!(self, Self::FailOver | Self::FailOverBehind)
    }

    /// Whether replies and timeouts may be late during the fault.
    const fn excuses(self) -> bool {
        !matches!(self, Self::FlushScripts | Self::StepClock)
    }
}

/// A planned fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strike {
    /// Milliseconds after the end of the previous one.
    pub(crate) after: u64,
    pub(crate) fault: Fault,
    pub(crate) lasts: u64,
    /// A random number for the fault's parameters.
    pub(crate) number: u64,
}

/// A random sequence of these faults.
pub(crate) fn strikes(seed: u64, faults: &[Fault]) -> Vec<Strike> {
    if faults.is_empty() {
        return Vec::new();
    }
    let mut random = StdRng::seed_from_u64(!seed);
    let mut strikes = Vec::new();
    let mut at = 0;
    while at < SPAN_MS && strikes.len() < 4 {
        let fault = faults[random.random_range(0..faults.len())];
        let lasts = match fault {
            Fault::KillReplica | Fault::KillRedis => random.random_range(0..400),
            // Sometimes longer than the clients' timeout.
            Fault::PauseReplica | Fault::PauseRedis if random.random_bool(0.25) => 1_900,
            Fault::PauseReplica | Fault::PauseRedis => random.random_range(50..900),
            // For each migrated slot.
            Fault::MoveSlot => random.random_range(10..150),
            _ => random.random_range(100..500),
        };
        // A failover takes long, so data is written before it.
        let after =
            if fault.fails_over() { random.random_range(250..800) } else { random.random_range(20..350) };
        at += if fault.fails_over() { SPAN_MS } else { after + lasts };
        strikes.push(Strike { after, fault, lasts, number: random.random_range(0..1_000) });
    }
    strikes
}

/// Injects the fault, waits, and repairs everything.
pub(crate) fn strike(deployment: &Deployment, strike: Strike, stopwatch: Stopwatch) -> Outage {
    let Strike { fault, lasts, number, .. } = strike;
    let chosen = usize::try_from(number).unwrap() % deployment.replicas.len();
    let replica = &deployment.replicas[chosen];
    let wait = || sleep(Duration::from_millis(lasts));
    let from = stopwatch.now();
    let mut loses_until = None;
    match fault {
        Fault::KillReplica => {
            replica.kill();
            wait();
            replica.restart();
        }
        Fault::KillRedis => drop(deployment.servers(|servers| {
            servers.one().kill();
            wait();
            servers.one().restart();
        })),
        Fault::PauseReplica => {
            replica.suspend();
            wait();
            replica.resume();
        }
        Fault::PauseRedis => drop(deployment.servers(|servers| {
            servers.one().suspend();
            wait();
            servers.one().resume();
        })),
        Fault::CutCall => cut(deployment, Cut::Call, number, wait),
        Fault::CutAnswer => cut(deployment, Cut::Answer, number, wait),
        Fault::CutHalfAnswer => cut(deployment, Cut::HalfAnswer, number, wait),
        Fault::Delay => {
            deployment.wires.iter().for_each(|wire| wire.delay(5 + number % 120));
            wait();
            deployment.wires.iter().for_each(|wire| wire.delay(0));
        }
        Fault::FlushScripts => drop(deployment.servers(|servers| {
            for _ in 0..=number % 20 {
                servers.running().into_iter().for_each(|server| ask::<()>(server, &["SCRIPT", "FLUSH"]));
                sleep(Duration::from_millis(lasts / 20));
            }
        })),
        Fault::StepClock => {
            let seconds = [-43_200, -3_600, -5, 3, 900, 3_600, 43_200][chosen_of(number, 7)];
            replica.step_clock(seconds);
            wait();
            replica.step_clock(0);
        }
        Fault::FailOver | Fault::FailOverBehind => drop(deployment.servers(|servers| {
            let killed = servers.kill_master(number, fault == Fault::FailOverBehind, wait);
            servers.wait_for_another(&killed);
            loses_until = Some(stopwatch.now());
            deployment.look_for_streams_at(servers.stream_urls());
            servers.bring_back(&killed);
            deployment.look_for_streams_at(servers.stream_urls());
        })),
        Fault::MoveSlot => drop(deployment.servers(|servers| servers.move_slots(number, wait))),
    }
    let what = format!("{fault:?} (replica {chosen}, {lasts} ms, {number})");
    Outage { what, excuses: fault.excuses(), from, loses_until, until: stopwatch.now() }
}

fn chosen_of(number: u64, count: u64) -> usize {
    usize::try_from(number % count).unwrap()
}

fn cut(deployment: &Deployment, cut: Cut, number: u64, wait: impl Fn()) {
    for wire in &deployment.wires {
        wire.cut(cut, 1 + chosen_of(number, 12));
    }
    wait();
    for wire in &deployment.wires {
        wire.cut(cut, 0);
    }
}
