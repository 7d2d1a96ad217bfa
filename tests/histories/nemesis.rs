//! Breaks a deployment, and makes it whole again.

use std::thread::sleep;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use test_support::proxy::Cut;
use test_support::redis_commands::ask;

use crate::deployment::{Deployment, Kind};
use crate::plan::SPAN_MS;
use crate::record::{Outage, Stopwatch};

/// What can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// A replica ends without warning, and is started again.
    KillReplica,
    /// So does Redis.
    KillRedis,
    /// A replica stands still.
    PauseReplica,
    /// Redis stands still.
    PauseRedis,
    /// Connections to Redis break before a call has arrived.
    CutCall,
    /// Connections to Redis break when the call has arrived and its answer has not.
    CutAnswer,
    /// Connections to Redis break in the middle of an answer.
    CutHalfAnswer,
    /// The wires to Redis are slow.
    Delay,
    /// Redis forgets the scripts.
    FlushScripts,
    /// A replica's system clock is wrong.
    StepClock,
    /// A master of Redis ends without warning. When a replica has taken over for it, it is started again.
    FailOver,
    /// The same, after a while in which its replicas got nothing of what it wrote.
    FailOverBehind,
    /// Slots that hold conversations move from one node of a cluster to another.
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

    /// Whether a deployment of this kind must bear it. What is in a process's memory ends with the process, and goes
    /// by its clock.
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

    /// Whether anything may be late while it lasts.
    const fn excuses(self) -> bool {
        !matches!(self, Self::FlushScripts | Self::StepClock)
    }
}

/// One thing that is broken for a while.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strike {
    /// Milliseconds after the last one was over.
    pub(crate) after: u64,
    pub(crate) fault: Fault,
    pub(crate) lasts: u64,
    /// Which replica, how often, how much: whatever the fault needs.
    pub(crate) number: u64,
}

/// What will be broken, out of these faults.
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
            // Now and again for longer than anybody waits for an answer.
            Fault::PauseReplica | Fault::PauseRedis if random.random_bool(0.25) => 1_900,
            Fault::PauseReplica | Fault::PauseRedis => random.random_range(50..900),
            // For each of some slots.
            Fault::MoveSlot => random.random_range(10..150),
            _ => random.random_range(100..500),
        };
        // A failover takes long, and something is to be there by then.
        let after =
            if fault.fails_over() { random.random_range(250..800) } else { random.random_range(20..350) };
        at += if fault.fails_over() { SPAN_MS } else { after + lasts };
        strikes.push(Strike { after, fault, lasts, number: random.random_range(0..1_000) });
    }
    strikes
}

/// Strikes, waits, and makes everything whole again.
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
