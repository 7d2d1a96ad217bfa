//! Stores with changed scripts: the proxy to Redis replaces the hashes of the service's scripts.

use callback_ingress::store::redis::scripts::{OPERATIONS, text};
use test_support::redis_server::RedisServer;

use crate::replica;

/// A change of a script: file, text, replacement.
pub(crate) type Change = (&'static str, &'static str, &'static str);

fn changed(name: &str, text: &str, changes: &[Change]) -> String {
    let own = changes.iter().filter(|(file, ..)| *file == name);
    own.fold(text.to_owned(), |text, (_, from, to)| {
        assert_eq!(text.matches(from).count(), 1, "{from:?} stands once in {name}.lua");
        text.replace(from, to)
    })
}

/// Loads the changed scripts; returns pairs of the original and the new hash.
pub(crate) fn exchanged(redis: &RedisServer, changes: &[Change]) -> Vec<(String, String)> {
    for (file, ..) in changes {
        assert!(OPERATIONS.iter().any(|files| files.contains(file)), "there is no {file}.lua");
    }
    let mut connection = redis.connection(0);
    let limits = replica::limits();
    let whole =
        |files: &[&str], changes: &[Change]| text(files, &limits, |name, text| changed(name, text, changes));
    let pairs = OPERATIONS.iter().map(|files| (whole(files, &[]), whole(files, changes)));
    pairs
        .filter(|(asked, called)| asked != called)
        .map(|(asked, called)| {
            let asked = redis::Script::new(&asked).get_hash().to_owned();
            (asked, redis::cmd("SCRIPT").arg("LOAD").arg(called).query(&mut connection).unwrap())
        })
        .collect()
}
