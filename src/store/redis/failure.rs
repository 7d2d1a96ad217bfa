//! Classifies failed requests: whether the request was executed, and whether another server may execute it.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::servers::Address;
use super::slots::HashSlot;

/// Why a request failed. After `ConnectionLost`, `TimedOut` and `ScriptFailed` it may have been executed, completely or
/// in part.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// Not executed: the server rejected it. Sending it to another server would not help.
    Rejected,
    /// Not executed: no connection, or the cluster cannot serve the slot at the moment.
    NotSent,
    /// Not executed: the server is a replica, or a demoted primary.
    NotPrimary,
    /// Not executed: the node at this address owns the slot (`MOVED`).
    Moved(HashSlot, Address),
    /// Not executed: the slot is being migrated to the node at this address (`ASK`).
    Ask(Address),
    /// The connection was lost after the request was sent. It may have been executed.
    ConnectionLost,
    /// No reply within the timeout. The request may have been executed, or may still be executed.
    TimedOut,
    /// The script failed after it had started, for example on a key of the wrong type. It may have written.
    ScriptFailed,
}

/// Error codes with which Redis rejects a request or the first write of a script. Redis 6 embeds the code in the
/// message of a script error. After the first write of a script, Redis rejects no further command with any of these
/// codes.
const REJECTION_CODES: [&str; 9] =
    ["OOM", "MISCONF", "NOREPLICAS", "BUSY", "LOADING", "NOAUTH", "NOPROTO", "READONLY", "MASTERDOWN"];

/// The codes of [`REJECTION_CODES`] that a replica returns.
const NOT_PRIMARY_CODES: [&str; 2] = ["READONLY", "MASTERDOWN"];

/// The code of [`REJECTION_CODES`] in this error, if any.
pub(in crate::store) fn rejection_code(error: &RedisError) -> Option<&'static str> {
    let (code, detail) = (error.code().unwrap_or_default(), error.detail().unwrap_or_default());
    REJECTION_CODES.into_iter().find(|word| code == *word || detail.contains(&format!("-{word} ")))
}

/// Whether the error was raised inside a script, which may already have written.
fn is_from_script(detail: &str) -> bool {
    detail.contains("user_script") || detail.starts_with("Error running script")
}

/// Whether the ACL of the user denies the command. For a command in a script, Redis before 8 returns a message without
/// an error code.
pub(super) fn is_permission_error(text: &str) -> bool {
    text.contains("NOPERM")
        || text.contains("no permissions")
        || text.contains("The user executing the script")
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a kind that a later version of the library adds is treated as an unknown outcome"
)]
pub(super) fn classify(error: &RedisError, sender: &Address) -> FailureKind {
    let detail = error.detail().unwrap_or_default();
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::NoPerm) if is_from_script(detail) => FailureKind::ScriptFailed,
        ErrorKind::Server(ServerErrorKind::ResponseError | ServerErrorKind::ExecAbort)
        | ErrorKind::Extension => match rejection_code(error) {
            Some(word) if NOT_PRIMARY_CODES.contains(&word) => FailureKind::NotPrimary,
            Some(_) => FailureKind::Rejected,
            None => FailureKind::ScriptFailed,
        },
        ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask) => redirection(error, sender),
        ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown) => FailureKind::NotPrimary,
        ErrorKind::Server(ServerErrorKind::ClusterDown | ServerErrorKind::TryAgain) => FailureKind::NotSent,
        ErrorKind::Server(_)
        | ErrorKind::Client
        | ErrorKind::InvalidClientConfig
        | ErrorKind::AuthenticationFailed => FailureKind::Rejected,
        _ if error.is_timeout() => FailureKind::TimedOut,
        _ => FailureKind::ConnectionLost,
    }
}

fn redirection(error: &RedisError, sender: &Address) -> FailureKind {
    let Some((text, slot)) = error.redirect_node() else { return FailureKind::NotSent };
    match (Address::parse_redirection(sender, text), HashSlot::new(slot)) {
        (Some(address), _) if error.kind() == ErrorKind::Server(ServerErrorKind::Ask) => {
            FailureKind::Ask(address)
        }
        (Some(address), Some(slot)) => FailureKind::Moved(slot, address),
        _ => FailureKind::NotSent,
    }
}

#[cfg(test)]
mod tests {
    use redis::make_extension_error;

    use super::*;

    /// The failure kind of an error reply.
    fn kind_of(reply: &str) -> FailureKind {
        let bytes = format!("-{reply}\r\n");
        let error = match redis::parse_redis_value(bytes.as_bytes()).and_then(redis::Value::extract_error) {
            Err(error) => error,
            Ok(value) => panic!("{value:?}"),
        };
        classify(&error, &Address { host: "a".into(), port: 1 })
    }

    #[test]
    fn rejection_codes_mean_not_executed() {
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
            assert_eq!(kind_of(reply), FailureKind::Rejected, "{reply}");
        }
    }

    #[test]
    fn replica_and_cluster_errors_mean_not_executed() {
        for reply in [
            "READONLY You can't write against a read only replica.",
            "READONLY You can't write against a read only replica. script: 08be, on @user_script:149.",
            "ERR Error running script (call to f_08be): @user_script:1: -READONLY You can't write",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        ] {
            assert_eq!(kind_of(reply), FailureKind::NotPrimary, "{reply}");
        }
        for reply in [
            "CLUSTERDOWN The cluster is down",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "MOVED nonsense",
            "MOVED 99999 a:1",
        ] {
            assert_eq!(kind_of(reply), FailureKind::NotSent, "{reply}");
        }
        let there = || Address { host: "10.0.0.1".into(), port: 7000 };
        assert_eq!(kind_of("MOVED 5 10.0.0.1:7000"), FailureKind::Moved(HashSlot::new(5).unwrap(), there()));
        assert_eq!(kind_of("ASK 5 10.0.0.1:7000"), FailureKind::Ask(there()));
        assert_eq!(kind_of("ASK 5 :7000"), FailureKind::Ask(Address { host: "a".into(), port: 7000 }));
    }

    #[test]
    fn errors_inside_a_script_are_not_rejections() {
        for reply in [
            "ERR The user executing the script can't run this command or subcommand script: 08, on @user_script:1.",
            "NOPERM User a has no permissions to run the 'hset' command script: 08be, on @user_script:1.",
            "ERR Error running script (call to f_08be): @user_script:1: @user_script: 1: -NOPERM this user",
            "WRONGTYPE Operation against a key holding the wrong kind of value script: 08, on @user_script:1.",
            "ERR user_script:1: attempt to index a nil value script: 08be, on @user_script:1.",
        ] {
            assert_eq!(kind_of(reply), FailureKind::ScriptFailed, "{reply}");
        }
    }

    #[test]
    fn io_errors_leave_the_outcome_unknown() {
        let sender = Address { host: "a".into(), port: 1 };
        let lost = |kind: std::io::ErrorKind| classify(&std::io::Error::from(kind).into(), &sender);
        assert_eq!(lost(std::io::ErrorKind::ConnectionReset), FailureKind::ConnectionLost);
        assert_eq!(lost(std::io::ErrorKind::TimedOut), FailureKind::TimedOut);
        assert_eq!(classify(&make_extension_error("NEW".into(), None), &sender), FailureKind::ScriptFailed);
    }
}
