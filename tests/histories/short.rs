//! The short form, within two minutes.

use std::sync::Arc;

use crate::deployment::{Deployment, Kind};
use crate::exchange::exchanged;
use crate::figures::Figures;
use crate::nemesis::Fault;
use crate::run::Batch;

/// Concurrent histories.
const AT_ONCE: usize = 12;

/// A random seed.
fn fresh_seed() -> u64 {
    rand::random::<u32>().into()
}

/// Runs batches with these faults on one deployment, with a fixed and a random seed, and expects no violation.
async fn holds(kind: Kind, faults: &[&[Fault]]) {
    holds_from(&[1, fresh_seed()], kind, faults).await;
}

/// The same with these seeds.
async fn holds_from(seeds: &[u64], kind: Kind, faults: &[&[Fault]]) {
    holds_on(&Arc::new(Deployment::start(kind)), seeds, faults).await;
}

/// The same on this deployment.
async fn holds_on(deployment: &Arc<Deployment>, seeds: &[u64], faults: &[&[Fault]]) {
    let kind = deployment.kind;
    let mut figures = Figures::default();
    for faults in faults {
        for &seed in seeds {
            let batch = Batch { seed, histories: AT_ONCE, faults: faults.to_vec() };
            println!("{}", batch.command(kind));
            let done = batch.run(deployment).await;
            let violations: Vec<_> = done.verdict.violations.iter().collect();
            figures.add(&done, violations.len());
            assert!(violations.is_empty(), "{}\n{}", done.story(&violations), batch.command(kind));
        }
    }
    println!("{}", figures.told("in all"));
    assert!(figures.acknowledged > figures.histories, "hardly anything was taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_store_holds_without_faults() {
    holds(Kind::Memory, &[&[], &[Fault::PauseReplica]]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_with_two_instances_holds_without_faults() {
    holds(Kind::Durable(2), &[&[]]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_redis_breaks_nothing() {
    holds(Kind::Durable(1), &[&[Fault::PauseRedis]]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_durable_redis_loses_and_duplicates_nothing() {
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
async fn instance_faults_break_nothing() {
    holds(Kind::Durable(3), &[&[Fault::KillReplica, Fault::PauseReplica], &[Fault::StepClock]]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_faults_break_nothing() {
    let cuts = [Fault::CutCall, Fault::CutAnswer, Fault::CutHalfAnswer];
    holds(Kind::Durable(2), &[&cuts, &[Fault::Delay, Fault::FlushScripts]]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn release_in_several_steps_breaks_nothing() {
    // A history has fewer items than the real limit of a step. If an instance is killed between two steps, the sweeper
    // continues.
    let change = ("release", "$step_items", "1");
    let deployment = Deployment::exchanging(Kind::Forgetful(2), |redis| exchanged(redis, &[change]));
    holds_on(&Arc::new(deployment), &[1, fresh_seed()], &[&[], &[Fault::KillReplica]]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mixed_faults_break_nothing() {
    let kind = Kind::Durable(3);
    let all: Vec<Fault> = Fault::ALL.into_iter().filter(|fault| fault.fits(kind)).collect();
    holds(kind, &[&all]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinel_failover_loses_nothing_replicated() {
    let kind = Kind::Sentinels { replicas: 2, waits: true };
    holds_from(&[fresh_seed()], kind, &[&[Fault::FailOver], &[Fault::FailOverBehind]]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_faults_lose_nothing_replicated() {
    let kind = Kind::Cluster { replicas: 2, waits: true };
    holds_from(&[fresh_seed()], kind, &[&[Fault::MoveSlot], &[Fault::FailOver]]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_without_replication_wait_counts_losses() {
    let kind = Kind::Sentinels { replicas: 1, waits: false };
    loses(kind, AT_ONCE, Fault::FailOverBehind).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_without_aof_counts_losses() {
    loses(Kind::Forgetful(2), 2 * AT_ONCE, Fault::KillRedis).await;
}

/// Runs batches with a fault until a result is lost, and expects only violations that the loss explains.
async fn loses(kind: Kind, histories: usize, fault: Fault) {
    let deployment = Arc::new(Deployment::start(kind));
    // A fault loses recently acknowledged results; sometimes there are none.
    for seed in 1..=10 {
        let batch = Batch { seed, histories, faults: vec![fault] };
        let done = batch.run(&deployment).await;
        let beyond = done.violations(kind);
        assert!(beyond.is_empty(), "{}\n{}", done.story(&beyond), batch.command(kind));
        println!("{} lost: {}", done.verdict.lost, batch.command(kind));
        if done.verdict.lost > 0 {
            assert!(!done.verdict.violations.is_empty(), "where nothing may be lost, nobody would have told");
            return;
        }
    }
    panic!("a Redis that forgets lost nothing, or nobody counted it: {kind:?}");
}
