//! Whether the Redis user may do all that the scripts do. A script is not rolled back: one that lacks a right halfway
//! would leave half of its work.

use std::sync::Arc;

use redis::{FromRedisValue, Script, cmd};

use super::fate::is_want_of_a_right;
use super::keys::Keys;
use super::nodes::{FromNode, Lane, Node, Nodes};
use super::script::Call;
use super::slots::Slot;
use crate::store::StoreError;

const PROBE: &str = include_str!("scripts/probe.lua");

/// What the user may not do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Missing {
    /// Commands.
    pub(super) commands: Vec<String>,
    /// Whether there are keys of ours that it may not touch.
    pub(super) keys: bool,
    /// Whether it may not publish: readers are woken late then, and nothing is lost.
    pub(super) wakes: bool,
}

impl Missing {
    fn add(&mut self, command: String, error: &str) {
        if !is_want_of_a_right(error) {
            // Such as a server that is full: no matter of rights.
            return;
        }
        if command == "PUBLISH" {
            self.wakes = true;
        } else if error.contains("key") {
            self.keys = true;
        } else if !self.commands.contains(&command) {
            self.commands.push(command);
        }
    }

    /// Why this user is not enough, if it is not.
    pub(super) fn complaint(&self) -> Option<String> {
        let commands = (!self.commands.is_empty())
            .then(|| format!("may not run {}, which the scripts use", self.commands.join(", ")));
        let keys = self.keys.then(|| "may not touch all keys that begin with {cb:".to_owned());
        let reasons: Vec<String> = commands.into_iter().chain(keys).collect();
        (!reasons.is_empty()).then(|| {
            format!(
                "the Redis user under store.url {}: steps would fail halfway. Give it the right (ACL SETUSER), or \
                 another user",
                reasons.join(", and ")
            )
        })
    }
}

/// Tries every command on every node that has partitions.
pub(super) async fn missing(nodes: &Nodes, partitions: u16) -> Result<Missing, StoreError> {
    let probe = Script::new(PROBE);
    let mut missing = Missing::default();
    let mut seen: Vec<Arc<Node>> = Vec::new();
    for partition in 0..partitions {
        let (key, channel) = Keys::probe(partition);
        if let Ok(owner) = nodes.owner(Slot::of(&key)).await
            && seen.iter().any(|node| Arc::ptr_eq(node, &owner))
        {
            continue;
        }
        // Calling it loads it only where it is not known.
        nodes.command(&key, cmd("SCRIPT").arg("LOAD").arg(PROBE)).await?;
        let FromNode { value, node, .. } =
            Call::new(&probe, &[&key], 0).raw(channel).send(nodes, Lane::Commands).await?;
        let met = Vec::<(String, String)>::from_redis_value(value)
            .map_err(|_| StoreError::Broken("the probe's answer is no list".into()))?;
        for (command, error) in met {
            missing.add(command, &error);
        }
        if node.fence.is_some() {
            // With no replicas to wait for it answers at once.
            nodes.command(&key, cmd("WAIT").arg(0).arg(0)).await?;
        }
        seen.push(node);
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;

    /// The commands that a script's text calls by this way of calling.
    fn called<'a>(text: &'a str, way: &str) -> Vec<&'a str> {
        text.split(way).skip(1).filter_map(|rest| rest.split('\'').next()).collect()
    }

    #[test]
    fn the_probe_tries_every_command_that_the_scripts_use() {
        let mut used = BTreeSet::new();
        let mut tried = BTreeSet::new();
        let texts: Vec<String> =
            fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/redis/scripts"))
                .unwrap()
                .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
                .collect();
        for text in &texts {
            used.extend(called(text, "call('"));
            tried.extend(called(text, "try('"));
        }
        assert!(used.contains("HSET") && used.contains("PUBLISH"), "{used:?}");
        // Commands that no script uses: announcements of timers.
        used.extend(["SADD", "SMEMBERS"]);
        assert_eq!(tried, used);
    }

    #[test]
    fn a_complaint_names_what_is_missing() {
        let mut missing = Missing::default();
        missing.add("PUBLISH".into(), "The user executing the script can't publish to the channel");
        missing.add("HSET".into(), "OOM command not allowed");
        assert_eq!((missing.complaint(), missing.wakes), (None, true));
        missing.add("HSET".into(), "The user executing the script can't run this command or subcommand");
        missing.add("XADD".into(), "NOPERM User a has no permissions to run the 'xadd' command");
        let complaint = missing.complaint().unwrap();
        assert!(complaint.contains("may not run HSET, XADD,") && !complaint.contains("keys"), "{complaint}");
        missing.add("GET".into(), "The user executing the script can't access at least one of the keys");
        assert!(missing.complaint().unwrap().contains("may not touch all keys"), "{missing:?}");
    }
}
