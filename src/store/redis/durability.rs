//! Warns about server settings that can cause the loss of acknowledged results.

use std::collections::HashMap;
use std::fmt;

use redis::{FromRedisValue, cmd};

use super::connection::Request;
use super::node::{ConnectionRole, Node};
use super::nodes::Nodes;
use super::settings::Replicas;

/// A warning about the settings of a server, as a message for the operator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DurabilityWarning {
    /// Acknowledged data can be lost, or writes fail, with this setting.
    Risk(String),
    /// A setting could not be read.
    Unchecked(String),
}

impl fmt::Display for DurabilityWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Risk(text) | Self::Unchecked(text) => f.write_str(text),
        }
    }
}

/// The settings of a server that affect durability. `None`: the setting cannot be read.
#[derive(Debug, Default)]
struct ServerSettings {
    append_only: Option<bool>,
    /// `appendfsync`. `CONFIG GET` returns it, but is in the ACL category `@admin`.
    fsync: Option<String>,
    max_memory: Option<u64>,
    policy: Option<String>,
    replicas: Option<u64>,
}

impl ServerSettings {
    fn read(info: &str, fsync: Option<String>) -> Self {
        let field = |name: &str| {
            let mut lines = info.lines().filter_map(|line| line.trim_end().split_once(':'));
            lines.find(|(known, _)| *known == name).map(|(_, value)| value.to_owned())
        };
        let number = |name| field(name).and_then(|value| value.parse().ok());
        Self {
            append_only: field("aof_enabled").map(|enabled| enabled == "1"),
            fsync,
            max_memory: number("maxmemory"),
            policy: field("maxmemory_policy"),
            replicas: number("connected_slaves"),
        }
    }

    /// `fails_over`: whether a replica can be promoted. `waits_for`: `store.wait_replicas`, `None` for 0.
    fn warnings(&self, fails_over: bool, waits_for: Option<u64>) -> Vec<DurabilityWarning> {
        let mut warnings = Vec::new();
        let mut risk = |text: String| warnings.push(DurabilityWarning::Risk(text));
        if self.append_only == Some(false) {
            risk(
                "Redis has no append-only file (appendonly no): a crash loses everything that was acknowledged since \
                 the last snapshot"
                    .into(),
            );
        }
        if self.append_only == Some(true)
            && let Some(fsync) = self.fsync.as_deref().filter(|fsync| *fsync != "always")
        {
            risk(format!(
                "Redis does not sync its append-only file on every write (appendfsync {fsync}): a power failure loses \
                 what was acknowledged in the last seconds; set appendfsync always to prevent that"
            ));
        }
        if self.max_memory.is_some_and(|bytes| bytes > 0)
            && let Some(policy) = self.policy.as_deref().filter(|policy| *policy != "noeviction")
        {
            risk(format!(
                "Redis evicts keys when its memory is full (maxmemory-policy {policy}), including live conversations: \
                 set noeviction"
            ));
        }
        let replicas = self.replicas.unwrap_or_default();
        match waits_for {
            None if replicas > 0 || fails_over => risk(
                "Redis can fail over to a replica, and store.wait_replicas is 0: a failover loses what was \
                 acknowledged but had not reached the replica"
                    .into(),
            ),
            Some(wanted) if self.replicas.is_some_and(|replicas| replicas < wanted) => risk(format!(
                "store.wait_replicas is {wanted}, but the number of connected replicas is {replicas}: every write \
                 returns OUTCOME_UNKNOWN until there are enough"
            )),
            _ => {}
        }
        let unknown = [
            (self.append_only.is_none(), "appendonly"),
            (self.append_only != Some(false) && self.fsync.is_none(), "appendfsync"),
            (self.max_memory.is_none() || self.policy.is_none(), "maxmemory-policy"),
        ];
        let unknown: Vec<&str> = unknown.into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect();
        if !unknown.is_empty() {
            warnings.push(DurabilityWarning::Unchecked(format!(
                "cannot check these settings of Redis, because they cannot be read: {}",
                unknown.join(", ")
            )));
        }
        warnings
    }
}

async fn settings_of(node: &Node) -> ServerSettings {
    let connection = node.connection(ConnectionRole::Commands);
    let info = connection.text(&["INFO"]).await.unwrap_or_default();
    let command = cmd("CONFIG").arg("GET").arg("appendfsync").to_owned();
    let reply = connection.send(Request::command(&command)).await.ok();
    let settings = reply.and_then(|reply| HashMap::<String, String>::from_redis_value(reply.value).ok());
    ServerSettings::read(&info, settings.and_then(|mut settings| settings.remove("appendfsync")))
}

/// The warnings of all nodes, sorted and without duplicates. Skips nodes that do not respond.
pub(super) async fn warnings(nodes: &Nodes, replicas: Option<Replicas>) -> Vec<DurabilityWarning> {
    let mut warnings = Vec::new();
    for node in nodes.all().await.unwrap_or_default() {
        warnings.extend(
            settings_of(&node).await.warnings(nodes.has_failover(), replicas.map(|replicas| replicas.count)),
        );
    }
    warnings.sort();
    warnings.dedup();
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(info: &str, fsync: Option<&str>, fails_over: bool, waits_for: Option<u64>) -> String {
        let settings_of = ServerSettings::read(info, fsync.map(str::to_owned));
        let warnings: Vec<String> = settings_of
            .warnings(fails_over, waits_for)
            .iter()
            .map(|warning| format!("{warning:?}"))
            .collect();
        warnings.join("\n")
    }

    #[test]
    fn durable_settings_cause_no_warning() {
        let good = "aof_enabled:1\r\nmaxmemory:100\r\nmaxmemory_policy:noeviction\r\nconnected_slaves:0\r\n";
        assert_eq!(field(good, Some("always"), false, None), "");
        let unlimited = good.replace("maxmemory:100", "maxmemory:0").replace("noeviction", "allkeys-lru");
        assert_eq!(field(&unlimited, Some("always"), false, None), "");
        assert_eq!(field(&good.replace("slaves:0", "slaves:2"), Some("always"), true, Some(2)), "");
    }

    #[test]
    fn each_risky_setting_causes_a_warning() {
        let bad = "aof_enabled:0\r\nmaxmemory:100\r\nmaxmemory_policy:volatile-ttl\r\nconnected_slaves:1\r\n";
        let all = field(bad, Some("always"), false, None);
        for word in ["appendonly no", "volatile-ttl", "store.wait_replicas is 0"] {
            assert!(all.contains(word), "{word}: {all}");
        }
        assert!(field("aof_enabled:1\r\n", Some("everysec"), false, None).contains("appendfsync everysec"));
        assert!(field("connected_slaves:0\r\n", None, true, None).contains("store.wait_replicas is 0"));
        assert!(field("connected_slaves:1\r\n", None, true, Some(2)).contains("connected replicas is 1"));
    }

    #[test]
    fn unreadable_settings_are_reported_as_unchecked() {
        let unreadable = field("", None, false, None);
        assert_eq!(
            unreadable,
            "Unchecked(\"cannot check these settings of Redis, because they cannot be read: appendonly, appendfsync, \
             maxmemory-policy\")"
        );
        assert!(!field("aof_enabled:0\r\n", None, false, None).contains("appendfsync"));
    }
}
