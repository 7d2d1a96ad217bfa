//! The short form: in the suite, within two minutes.

use std::sync::Arc;

use crate::deployment::{Deployment, Kind};
use crate::figures::Figures;
use crate::nemesis::Fault;
use crate::run::Batch;

/// How many histories run at once.
const AT_ONCE: usize = 12;

/// A seed that no run had before.
fn fresh_seed() -> u64 {
    rand::random::<u32>().into()
}

/// Runs batches of these faults on one deployment, of a fixed seed and of a fresh one each, and expects no violation.
async fn holds(kind: Kind, faults: &[&[Fault]]) {
    let deployment = Arc::new(Deployment::start(kind));
    let mut figures = Figures::default();
    for faults in faults {
        for seed in [1, fresh_seed()] {
            let batch = Batch { seed, histories: AT_ONCE, faults: faults.to_vec() };
            println!("{}", batch.command(kind));
            let done = batch.run(&deployment).await;
            let violations: Vec<_> = done.verdict.violations.iter().collect();
            figures.add(&done, violations.len());
            assert!(violations.is_empty(), "{}\n{}", done.story(&violations), batch.command(kind));
        }
    }
    println!("{}", figures.told("in all"));
    assert!(figures.acknowledged > figures.histories, "hardly anything was taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_broken_and_everything_holds_on_the_embedded_store() {
    holds(Kind::Memory, &[&[], &[Fault::PauseReplica]]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_broken_and_everything_holds_on_redis_with_two_replicas() {
    holds(Kind::Durable(2), &[&[]]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_holds_when_redis_stands_still() {
    holds(Kind::Durable(1), &[&[Fault::PauseRedis]]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_kills_of_a_redis_that_writes_everything_down_lose_nothing_and_double_nothing() {
    let kind = Kind::Durable(2);
    let deployment = Arc::new(Deployment::start(kind));
    let (mut kills, mut acknowledged, first) = (0, 0, fresh_seed());
    for seed in first.. {
        let batch = Batch { seed, histories: AT_ONCE, faults: vec![Fault::KillRedis] };
        let done = batch.run(&deployment).await;
        let violations: Vec<_> = done.verdict.violations.iter().collect();
        assert!(violations.is_empty(), "{}\n{}", done.story(&violations), batch.command(kind));
        let mut figures = Figures::default();
        figures.add(&done, 0);
        (kills, acknowledged) = (kills + figures.faults, acknowledged + figures.acknowledged);
        if kills >= 10 {
            break;
        }
    }
    println!("{kills} kills, {acknowledged} acknowledged, seeds from {first}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_holds_when_replicas_are_killed_stand_still_and_have_wrong_clocks() {
    holds(Kind::Durable(3), &[&[Fault::KillReplica, Fault::PauseReplica], &[Fault::StepClock]]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_holds_when_wires_are_cut_and_slow_and_scripts_forgotten() {
    let cuts = [Fault::CutCall, Fault::CutAnswer, Fault::CutHalfAnswer];
    holds(Kind::Durable(2), &[&cuts, &[Fault::Delay, Fault::FlushScripts]]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_holds_when_everything_is_broken_in_turn() {
    holds(Kind::Durable(3), &[&Fault::ALL]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_redis_without_an_append_only_file_loses_is_counted() {
    let kind = Kind::Forgetful(2);
    let deployment = Arc::new(Deployment::start(kind));
    // What was acknowledged before the first kill is lost; now and again that is nothing.
    for seed in 1..=10 {
        let batch = Batch { seed, histories: 2 * AT_ONCE, faults: vec![Fault::KillRedis] };
        let done = batch.run(&deployment).await;
        let beyond = done.beyond_loss();
        assert!(beyond.is_empty(), "{}\n{}", done.story(&beyond), batch.command(kind));
        println!("{} lost: {}", done.verdict.lost, batch.command(kind));
        if done.verdict.lost > 0 {
            return;
        }
    }
    panic!("a Redis that forgets lost nothing, or nobody counted it");
}
