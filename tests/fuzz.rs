//! A short form of the fuzz targets under `fuzz/`: the same checks, on every seed and on some thousands of seeds that
//! were spoilt at random. A failing input is made as small as it can be and shown; as a file in `fuzz/corpus/<target>`
//! it is tried ever after.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "everything here is a test, and what a test does not expect fails it"
)]

use std::fmt;
use std::path::Path;

use fuzz_checks::{body, carriers, config, token};
use proptest::collection::vec;
use proptest::prelude::{Strategy, any};
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

#[test]
fn only_what_was_signed_is_a_token() {
    holds("token", 2000, token::check);
}

#[test]
fn a_request_is_taken_for_the_one_token_that_it_carries() {
    holds("carriers", 1000, carriers::check);
}

#[test]
fn a_body_is_json_and_travels_unchanged_without_its_token() {
    holds("body", 4000, body::check);
}

#[test]
fn a_configuration_is_what_was_laid_last_and_shows_no_secret() {
    holds("config", 1000, config::check);
}

/// An input that is shown as it would be written in source code.
struct Input(Vec<u8>);

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = folder.read_dir().unwrap().map(|file| file.unwrap().path());
    let seeds: Vec<_> =
        files.map(|file| (file.display().to_string(), std::fs::read(&file).unwrap())).collect();
    assert!(seeds.len() > 10, "the seeds of {target} are missing");
    seeds
}

fn holds(target: &str, spoilt: u32, check: fn(&[u8])) {
    let seeds = seeds(target);
    for (name, seed) in &seeds {
        assert!(std::panic::catch_unwind(|| check(seed)).is_ok(), "{name}: see above");
    }
    let seeds: Vec<_> = seeds.into_iter().map(|(_, seed)| seed).collect();
    let place = (any::<Index>(), 0..9_usize);
    let fresh = vec(proptest::prop_oneof![any::<u8>(), b' '..=b'~'], 0..5);
    let edits = vec((place.clone(), fresh, any::<Option<(Index, Index)>>()), 1..5);
    let inputs = (any::<Index>(), edits).prop_map(move |(seed, edits)| {
        let mut input = seeds[seed.index(seeds.len())].clone();
        for ((at, length), fresh, other) in edits {
            let other = other.map(|(seed, at)| piece(seeds[seed.index(seeds.len())].as_slice(), at));
            replace(&mut input, at, length, other.unwrap_or(&fresh));
        }
        Input(input)
    });
    let mut runner =
        TestRunner::new(Config { cases: spoilt, failure_persistence: None, ..Config::default() });
    let held = runner.run(&inputs, |input| {
        check(&input.0);
        Ok(())
    });
    if let Err(failure) = held {
        panic!("{target}: {failure}");
    }
}

/// What stands in a seed from here on, or a little of it.
fn piece(seed: &[u8], at: Index) -> &[u8] {
    let from = at.index(seed.len() + 1);
    let to = if at.index(2) == 0 { seed.len() } else { (from + 16).min(seed.len()) };
    &seed[from..to]
}

fn replace(input: &mut Vec<u8>, at: Index, length: usize, by: &[u8]) {
    let from = at.index(input.len() + 1);
    let to = (from + length).min(input.len());
    input.splice(from..to, by.iter().copied());
}
