//! Without a fault, no reply reports the store as unavailable.

use super::channel::ANSWERED_IN_TIME;
use super::{Rule, Violation};
use crate::record::{Attempt, History};

/// Replies that report an unavailable store although no fault was injected. If any reply was slow, the machine was too
/// busy, and nothing is reported.
pub(crate) fn unfounded(histories: &[History]) -> Vec<Violation> {
    let conversations = || histories.iter().flat_map(|history| &history.conversations);
    let in_time = |attempt: &Attempt| {
        attempt.reply.is_some() && attempt.returned.saturating_sub(attempt.invoked) <= ANSWERED_IN_TIME
    };
    let mut operations = conversations().flat_map(|conversation| &conversation.operations);
    if !operations.all(|operation| operation.attempts.iter().all(in_time)) {
        return Vec::new();
    }
    let refused = conversations().flat_map(|conversation| {
        let attempts = conversation.operations.iter().flat_map(|operation| &operation.attempts);
        attempts.filter_map(|attempt| Some((conversation.id.clone(), attempt.reply.as_ref()?.code())))
    });
    refused
        .filter(|(_, code)| matches!(*code, "STORE_UNAVAILABLE" | "OUTCOME_UNKNOWN"))
        .map(|(conversation, code)| Violation {
            rule: Rule::Available,
            conversation,
            what: format!("{code}, and nothing was broken"),
        })
        .collect()
}
