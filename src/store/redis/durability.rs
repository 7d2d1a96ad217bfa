//! What weakens the promise of a 202 in the settings of the servers, in plain words.

use std::collections::HashMap;
use std::fmt;

use redis::{FromRedisValue, cmd};

use super::link::Request;
use super::nodes::{Lane, Node, Nodes};
use super::replicas::Replicas;

/// What an operator should know of the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remark {
    /// Something promised holds less than it could.
    Weakens(String),
    /// Something could not be found out.
    NotChecked(String),
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weakens(text) | Self::NotChecked(text) => f.write_str(text),
        }
    }
}

/// What a server tells of itself, as far as it matters here.
#[derive(Debug, Default)]
struct Facts {
    append_only: Option<bool>,
    /// `appendfsync`, which only an administrator may ask for.
    fsync: Option<String>,
    max_memory: Option<u64>,
    policy: Option<String>,
    replicas: Option<u64>,
}

impl Facts {
    fn read(info: &str, fsync: Option<String>) -> Self {
        let told = |name: &str| {
            let mut lines = info.lines().filter_map(|line| line.trim_end().split_once(':'));
            lines.find(|(known, _)| *known == name).map(|(_, value)| value.to_owned())
        };
        let number = |name| told(name).and_then(|value| value.parse().ok());
        Self {
            append_only: told("aof_enabled").map(|enabled| enabled == "1"),
            fsync,
            max_memory: number("maxmemory"),
            policy: told("maxmemory_policy"),
            replicas: number("connected_slaves"),
        }
    }

    fn remarks(&self, fails_over: bool, waits_for: Option<u64>) -> Vec<Remark> {
        let mut remarks = Vec::new();
        let mut weakens = |text: String| remarks.push(Remark::Weakens(text));
        if self.append_only == Some(false) {
            weakens(
                "Redis has no append-only file (appendonly no): when it crashes, everything acknowledged since its \
                 last snapshot is lost"
                    .into(),
            );
        }
        if self.append_only == Some(true)
            && let Some(fsync) = self.fsync.as_deref().filter(|fsync| *fsync != "always")
        {
            weakens(format!(
                "Redis writes its append-only file to the disk late (appendfsync {fsync}): a power cut loses what \
                 was acknowledged in the last seconds; with appendfsync always, nothing"
            ));
        }
        if self.max_memory.is_some_and(|bytes| bytes > 0)
            && let Some(policy) = self.policy.as_deref().filter(|policy| *policy != "noeviction")
        {
            weakens(format!(
                "Redis evicts keys when its memory is full (maxmemory-policy {policy}), live conversations too: set \
                 noeviction"
            ));
        }
        let replicas = self.replicas.unwrap_or_default();
        match waits_for {
            None if replicas > 0 || fails_over => weakens(
                "Redis may fail over to a replica, and store.wait_replicas is 0: what was acknowledged and had not \
                 reached the replica is lost then"
                    .into(),
            ),
            Some(wanted) if self.replicas.is_some_and(|replicas| replicas < wanted) => weakens(format!(
                "store.wait_replicas is {wanted}, and Redis has {replicas} of them: until there are enough, every \
                 write is answered OUTCOME_UNKNOWN"
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
            remarks.push(Remark::NotChecked(format!(
                "Redis does not tell its {}: not checked",
                unknown.join(" and ")
            )));
        }
        remarks
    }
}

async fn facts(node: &Node) -> Facts {
    let link = node.link(Lane::Commands);
    let info = link.text(&["INFO"]).await.unwrap_or_default();
    let question = cmd("CONFIG").arg("GET").arg("appendfsync").to_owned();
    let answer = link.send(Request::command(&question)).await.ok();
    let settings = answer.and_then(|answer| HashMap::<String, String>::from_redis_value(answer.value).ok());
    Facts::read(&info, settings.and_then(|mut settings| settings.remove("appendfsync")))
}

/// Asks every node; of one that does not answer nothing is said.
pub(super) async fn remarks(nodes: &Nodes, replicas: Option<Replicas>) -> Vec<Remark> {
    let mut remarks = Vec::new();
    for node in nodes.all().await.unwrap_or_default() {
        remarks
            .extend(facts(&node).await.remarks(nodes.may_change(), replicas.map(|replicas| replicas.count)));
    }
    remarks.sort();
    remarks.dedup();
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(info: &str, fsync: Option<&str>, fails_over: bool, waits_for: Option<u64>) -> String {
        let facts = Facts::read(info, fsync.map(str::to_owned));
        let remarks: Vec<String> =
            facts.remarks(fails_over, waits_for).iter().map(|remark| format!("{remark:?}")).collect();
        remarks.join("\n")
    }

    #[test]
    fn settings_that_weaken_nothing_are_not_remarked_on() {
        let good = "aof_enabled:1\r\nmaxmemory:100\r\nmaxmemory_policy:noeviction\r\nconnected_slaves:0\r\n";
        assert_eq!(told(good, Some("always"), false, None), "");
        let unlimited = good.replace("maxmemory:100", "maxmemory:0").replace("noeviction", "allkeys-lru");
        assert_eq!(told(&unlimited, Some("always"), false, None), "");
        assert_eq!(told(&good.replace("slaves:0", "slaves:2"), Some("always"), true, Some(2)), "");
    }

    #[test]
    fn each_setting_that_weakens_a_promise_is_remarked_on() {
        let bad = "aof_enabled:0\r\nmaxmemory:100\r\nmaxmemory_policy:volatile-ttl\r\nconnected_slaves:1\r\n";
        let all = told(bad, Some("always"), false, None);
        for word in ["appendonly no", "volatile-ttl", "store.wait_replicas is 0"] {
            assert!(all.contains(word), "{word}: {all}");
        }
        assert!(told("aof_enabled:1\r\n", Some("everysec"), false, None).contains("appendfsync everysec"));
        assert!(told("connected_slaves:0\r\n", None, true, None).contains("store.wait_replicas is 0"));
        assert!(told("connected_slaves:1\r\n", None, true, Some(2)).contains("Redis has 1 of them"));
    }

    #[test]
    fn what_is_not_told_is_said_to_be_unchecked() {
        let silent = told("", None, false, None);
        assert_eq!(
            silent,
            "NotChecked(\"Redis does not tell its appendonly and appendfsync and maxmemory-policy: not checked\")"
        );
        assert!(!told("aof_enabled:0\r\n", None, false, None).contains("appendfsync"));
    }
}
