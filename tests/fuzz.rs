//! Runs the checks of the fuzz targets on every file of the corpus and on some thousands of random mutations. A failing
//! input is shrunk and shown; add it to `fuzz/corpus/<target>`, where every run checks it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "an unexpected result fails the test")]

use std::fmt;
use std::path::Path;

use fuzz_checks::{body, carriers, config, token};
use proptest::collection::vec;
use proptest::prelude::{Strategy, any};
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

#[test]
fn only_signed_tokens_verify() {
    holds("token", 2000, token::check);
}

#[test]
fn requests_match_the_model() {
    holds("carriers", 1000, carriers::check);
}

#[test]
fn bodies_match_serde_json() {
    holds("body", 4000, body::check);
}

#[test]
fn configurations_are_layered_and_show_no_secret() {
    holds("config", 1000, config::check);
}

/// An input whose debug form is a byte string literal.
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

fn holds(target: &str, mutations: u32, check: fn(&[u8])) {
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
        TestRunner::new(Config { cases: mutations, failure_persistence: None, ..Config::default() });
    let held = runner.run(&inputs, |input| {
        check(&input.0);
        Ok(())
    });
    if let Err(failure) = held {
        panic!("{target}: {failure}");
    }
}

/// The rest of a seed from an offset, or its next 16 bytes.
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
