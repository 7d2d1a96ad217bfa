//! What became of a request that failed: whether it was executed, and whether another server would.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::servers::Address;
use super::slots::Slot;

/// What became of a request that failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The server did not execute it.
    Refused,
    /// Nobody executed it: no server was reached, or one that cannot for now.
    Astray,
    /// Nobody executed it: the server is no master, or not any more.
    NoMaster,
    /// The server did not execute it: this one has the slot.
    Moved(Slot, Address),
    /// The server did not execute it: this one may have the keys by now.
    Ask(Address),
    /// It may have been executed, and the connection is lost.
    Disconnected,
    /// It may have been executed, or may still be.
    Late,
    /// The server executed it, or a part of it, and it failed: a mistake of ours, or a store that somebody spoilt.
    Mistake,
}

/// Words with which Redis refuses a request, or a script's first write; Redis 6 wraps those in a text of its own.
/// After its first write a script is not refused for any of them.
const REFUSALS: [&str; 9] =
    ["OOM", "MISCONF", "NOREPLICAS", "BUSY", "LOADING", "NOAUTH", "NOPROTO", "READONLY", "MASTERDOWN"];

/// Those of them with which a replica refuses.
const NO_MASTER: [&str; 2] = ["READONLY", "MASTERDOWN"];

/// The word of [`REFUSALS`] with which the server refused, if it did.
pub(in crate::store) fn refusal(error: &RedisError) -> Option<&'static str> {
    let (code, detail) = (error.code().unwrap_or_default(), error.detail().unwrap_or_default());
    REFUSALS.into_iter().find(|word| code == *word || detail.contains(&format!("-{word} ")))
}

/// Whether an error came from within a script, which may have written by then.
fn is_within_a_script(detail: &str) -> bool {
    detail.contains("user_script") || detail.starts_with("Error running script")
}

/// Whether the user lacks a right. Within a script Redis before 8 says so in words only.
pub(super) fn is_want_of_a_right(text: &str) -> bool {
    text.contains("NOPERM")
        || text.contains("no permissions")
        || text.contains("The user executing the script")
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library may add kinds: the careful answer is for all of them"
)]
pub(super) fn fate(error: &RedisError, sender: &Address) -> Fate {
    let detail = error.detail().unwrap_or_default();
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::NoPerm) if is_within_a_script(detail) => Fate::Mistake,
        ErrorKind::Server(ServerErrorKind::ResponseError | ServerErrorKind::ExecAbort)
        | ErrorKind::Extension => match refusal(error) {
            Some(word) if NO_MASTER.contains(&word) => Fate::NoMaster,
            Some(_) => Fate::Refused,
            None => Fate::Mistake,
        },
        ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask) => redirection(error, sender),
        ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown) => Fate::NoMaster,
        ErrorKind::Server(ServerErrorKind::ClusterDown | ServerErrorKind::TryAgain) => Fate::Astray,
        ErrorKind::Server(_)
        | ErrorKind::Client
        | ErrorKind::InvalidClientConfig
        | ErrorKind::AuthenticationFailed => Fate::Refused,
        _ if error.is_timeout() => Fate::Late,
        _ => Fate::Disconnected,
    }
}

fn redirection(error: &RedisError, sender: &Address) -> Fate {
    let Some((text, slot)) = error.redirect_node() else { return Fate::Astray };
    match (Address::told_by(sender, text), Slot::new(slot)) {
        (Some(address), _) if error.kind() == ErrorKind::Server(ServerErrorKind::Ask) => Fate::Ask(address),
        (Some(address), Some(slot)) => Fate::Moved(slot, address),
        _ => Fate::Astray,
    }
}

#[cfg(test)]
mod tests {
    use redis::make_extension_error;

    use super::*;

    /// What the library makes of an error reply.
    fn told(reply: &str) -> Fate {
        let bytes = format!("-{reply}\r\n");
        let error = match redis::parse_redis_value(bytes.as_bytes()).and_then(redis::Value::extract_error) {
            Err(error) => error,
            Ok(value) => panic!("{value:?}"),
        };
        fate(&error, &Address { host: "a".into(), port: 1 })
    }

    #[test]
    fn what_was_refused_was_not_executed() {
        for reply in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "OOM command not allowed when used memory > 'maxmemory'. script: 08be, on @user_script:149.",
            "ERR Error running script (call to f_08be): @user_script:1: -OOM command not allowed",
            "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist",
            "MISCONF Errors writing to the AOF file: No space left on device script: 08be, on @user_script:149.",
            "NOREPLICAS Not enough good replicas to write.",
            "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
            "LOADING Redis is loading the dataset in memory",
            "NOAUTH Authentication required.",
            "NOPERM this user has no permissions to run the 'evalsha' command",
            "NOSCRIPT No matching script.",
            "CROSSSLOT Keys in request don't hash to the same slot",
        ] {
            assert_eq!(told(reply), Fate::Refused, "{reply}");
        }
    }

    #[test]
    fn what_another_server_must_be_asked_was_not_executed() {
        for reply in [
            "READONLY You can't write against a read only replica.",
            "READONLY You can't write against a read only replica. script: 08be, on @user_script:149.",
            "ERR Error running script (call to f_08be): @user_script:1: -READONLY You can't write",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        ] {
            assert_eq!(told(reply), Fate::NoMaster, "{reply}");
        }
        for reply in [
            "CLUSTERDOWN The cluster is down",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "MOVED nonsense",
            "MOVED 99999 a:1",
        ] {
            assert_eq!(told(reply), Fate::Astray, "{reply}");
        }
        let there = || Address { host: "10.0.0.1".into(), port: 7000 };
        assert_eq!(told("MOVED 5 10.0.0.1:7000"), Fate::Moved(Slot::new(5).unwrap(), there()));
        assert_eq!(told("ASK 5 10.0.0.1:7000"), Fate::Ask(there()));
        assert_eq!(told("ASK 5 :7000"), Fate::Ask(Address { host: "a".into(), port: 7000 }));
    }

    #[test]
    fn what_failed_within_a_script_is_not_taken_for_refused() {
        for reply in [
            "ERR The user executing the script can't run this command or subcommand script: 08, on @user_script:1.",
            "NOPERM User a has no permissions to run the 'hset' command script: 08be, on @user_script:1.",
            "ERR Error running script (call to f_08be): @user_script:1: @user_script: 1: -NOPERM this user",
            "WRONGTYPE Operation against a key holding the wrong kind of value script: 08, on @user_script:1.",
            "ERR user_script:1: attempt to index a nil value script: 08be, on @user_script:1.",
        ] {
            assert_eq!(told(reply), Fate::Mistake, "{reply}");
        }
    }

    #[test]
    fn what_was_lost_on_the_way_may_have_been_executed() {
        let sender = Address { host: "a".into(), port: 1 };
        let lost = |kind: std::io::ErrorKind| fate(&std::io::Error::from(kind).into(), &sender);
        assert_eq!(lost(std::io::ErrorKind::ConnectionReset), Fate::Disconnected);
        assert_eq!(lost(std::io::ErrorKind::TimedOut), Fate::Late);
        assert_eq!(fate(&make_extension_error("NEW".into(), None), &sender), Fate::Mistake);
    }
}
