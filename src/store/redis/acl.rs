//! Checks that the ACL of the Redis user allows every command that the scripts use. Redis does not roll back scripts:
//! if it denied a command in the middle of a script, the earlier writes would remain.

use std::sync::Arc;

use redis::{FromRedisValue, Script, cmd};

use super::failure::is_permission_error;
use super::keys::Keys;
use super::node::{ConnectionRole, Node};
use super::nodes::{NodeReply, Nodes};
use super::script::ScriptCall;
use super::slots::HashSlot;
use crate::store::StoreError;

const PROBE: &str = include_str!("scripts/probe.lua");

/// The permissions that the Redis user lacks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct MissingPermissions {
    /// Denied commands.
    pub(super) commands: Vec<String>,
    /// Whether access to some of the service's keys is denied.
    pub(super) keys: bool,
    /// Whether `PUBLISH` is denied. It is optional: without it, event streams poll.
    pub(super) publish: bool,
}

impl MissingPermissions {
    fn add(&mut self, command: String, error: &str) {
        if !is_permission_error(error) {
            // The command is allowed; it failed for another reason, for example `OOM`.
            return;
        }
        if command == "PUBLISH" {
            self.publish = true;
        } else if error.contains("key") {
            self.keys = true;
        } else if !self.commands.contains(&command) {
            self.commands.push(command);
        }
    }

    /// The error message. `None` if all required permissions are granted.
    pub(super) fn message(&self) -> Option<String> {
        let commands = (!self.commands.is_empty())
            .then(|| format!("is not allowed to run {}, which the service needs", self.commands.join(", ")));
        let keys = self.keys.then(|| "is denied access to some keys with the prefix \"{cb:\"".to_owned());
        let reasons: Vec<String> = commands.into_iter().chain(keys).collect();
        (!reasons.is_empty()).then(|| {
            format!(
                "the Redis user in store.url {}: scripts could stop halfway. Grant the permission (ACL SETUSER), or \
                 use another user",
                reasons.join(", and ")
            )
        })
    }
}

/// Runs `probe.lua`, which tries every command, on every node that owns partitions.
pub(super) async fn check(nodes: &Nodes, partitions: u16) -> Result<MissingPermissions, StoreError> {
    let probe = Script::new(PROBE);
    let mut missing = MissingPermissions::default();
    let mut seen: Vec<Arc<Node>> = Vec::new();
    for partition in 0..partitions {
        let (key, channel) = Keys::probe(partition);
        if let Ok(owner) = nodes.owner(HashSlot::of(&key)).await
            && seen.iter().any(|node| Arc::ptr_eq(node, &owner))
        {
            continue;
        }
        // Checks the permission for `SCRIPT LOAD` even if the script is already loaded.
        nodes.command(&key, cmd("SCRIPT").arg("LOAD").arg(PROBE)).await?;
        let NodeReply { value, node, .. } =
            ScriptCall::new(&probe, &[&key], 0).raw(channel).send(nodes, ConnectionRole::Commands).await?;
        let denied = Vec::<(String, String)>::from_redis_value(value)
            .map_err(|_| StoreError::Broken("the reply of probe.lua is not a list".into()))?;
        for (command, error) in denied {
            missing.add(command, &error);
        }
        if node.barrier.is_some() {
            // Checks the permission for `WAIT`, which returns immediately for 0 replicas.
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

    /// The command names that follow `prefix` in a script.
    fn called<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
        text.split(prefix).skip(1).filter_map(|rest| rest.split('\'').next()).collect()
    }

    #[test]
    fn probe_tries_every_command_of_the_scripts() {
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
        // Announcements of timers use these commands without a script.
        used.extend(["SADD", "SMEMBERS"]);
        assert_eq!(tried, used);
    }

    #[test]
    fn message_names_the_missing_permissions() {
        let mut missing = MissingPermissions::default();
        missing.add("PUBLISH".into(), "The user executing the script can't publish to the channel");
        missing.add("HSET".into(), "OOM command not allowed");
        assert_eq!((missing.message(), missing.publish), (None, true));
        missing.add("HSET".into(), "The user executing the script can't run this command or subcommand");
        missing.add("XADD".into(), "NOPERM User a has no permissions to run the 'xadd' command");
        let message = missing.message().unwrap();
        assert!(
            message.contains("is not allowed to run HSET, XADD,") && !message.contains("keys"),
            "{message}"
        );
        missing.add("GET".into(), "The user executing the script can't access at least one of the keys");
        assert!(missing.message().unwrap().contains("is denied access to some keys"), "{missing:?}");
    }
}
