//! The memory store is a model of the Redis store: random sequences of all operations, with time moved between them, run
//! on both. After every step the answers and the visible state of every conversation are compared.
//!
//! A failure reports the seed and a shrunk sequence. `PROPTEST_RNG_SEED` repeats a seed, `PROPTEST_CASES` sets the number
//! of sequences.

mod command;
mod step;
mod story;

use std::thread;

use callback_ingress::clock::{Clock, Entropy, ManualClock};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use test_support::redis_server::RedisServer;

use self::command::EVERY_KIND;
use self::step::story;
use self::story::{Kinds, LIMITS, Story};
use crate::stage::{START, redis_store, settings};

/// Minimum number of stories.
const STORIES: u32 = 1_000;
/// Steps of a story.
const STEPS: usize = 50;
/// Concurrent stories, each in its own Redis database.
const PARTITIONS: [u16; 4] = [1, 4, 1, 4];

#[test]
fn stores_agree_after_every_random_step() {
    let server = RedisServer::start();
    let config = Config::default();
    let seed = match config.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => u64::from_be_bytes(Entropy.bytes().unwrap()),
    };
    let stories = STORIES.max(config.cases);
    let lanes: Vec<_> = (0..).zip(PARTITIONS).collect();
    let kinds = thread::scope(|scope| {
        let url = |lane: u16| server.url(lane);
        let play = |&(lane, partitions): &(u16, u16)| {
            let url = url(lane);
            let share = stories.div_ceil(u32::try_from(PARTITIONS.len()).unwrap());
            scope.spawn(move || play_stories(url, partitions, share, seed.wrapping_add(lane.into())))
        };
        let lanes: Vec<_> = lanes.iter().map(play).collect();
        let mut kinds = Kinds::new();
        for lane in lanes {
            let found = lane.join().unwrap().unwrap_or_else(|failure| {
                panic!("{failure}\nto play it again, set PROPTEST_RNG_SEED={seed}");
            });
            for (kind, times) in found {
                *kinds.entry(kind).or_default() += times;
            }
        }
        kinds
    });
    for kind in kinds.keys() {
        assert!(EVERY_KIND.contains(&kind.as_str()), "{kind:?} is a kind of answer that is not listed");
    }
    for kind in EVERY_KIND {
        assert!(kinds.contains_key(*kind), "no answer was {kind:?}, of seed {seed}: {kinds:#?}");
    }
}

/// Runs stories on one database; returns how often each kind of answer occurred.
fn play_stories(url: String, partitions: u16, stories: u32, seed: u64) -> Result<Kinds, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let clock = ManualClock::at(START);
    let emptied =
        std::cell::RefCell::new(redis::Client::open(url.as_str()).unwrap().get_connection().unwrap());
    let mut settings = settings(url, LIMITS);
    settings.partitions = partitions;
    let redis = runtime.block_on(redis_store(&settings, Clock::Manual(clock.clone())));
    let mut runner = TestRunner::new(Config {
        cases: stories,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 3_000,
        ..Config::default()
    });
    let kinds = std::cell::RefCell::new(Kinds::new());
    let played = runner.run(&story(STEPS), |steps| {
        redis::cmd("FLUSHDB").exec(&mut *emptied.borrow_mut()).unwrap();
        let mut kinds = kinds.borrow_mut();
        let mut story = Story::new(&clock, &redis, partitions, &mut kinds);
        runtime.block_on(story.play(&steps)).map_err(TestCaseError::fail)
    });
    match played {
        Ok(()) => Ok(kinds.into_inner()),
        Err(TestError::Fail(why, _) | TestError::Abort(why)) => Err(why.to_string()),
    }
}
