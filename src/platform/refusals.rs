//! The response for each refusal of the store.

use crate::domain::gate::{
    CancelRefused, CancelTurnRefused, ConversationNotFound, IssueRefused, LookupRefused, OpenRefused,
};
use crate::http::code::Code;
use crate::http::refusal::Refusal;
use crate::store::StoreError;

fn conversation_not_found() -> Refusal {
    Refusal::new(Code::ConversationNotFound, "there is no such conversation")
}

fn conversation_ended() -> Refusal {
    Refusal::new(Code::ConversationEnded, "the conversation has ended")
}

fn work_item_not_found() -> Refusal {
    Refusal::new(Code::WorkItemNotFound, "there is no such work item")
}

impl From<ConversationNotFound> for Refusal {
    fn from(ConversationNotFound: ConversationNotFound) -> Self {
        conversation_not_found()
    }
}

impl From<OpenRefused> for Refusal {
    fn from(refused: OpenRefused) -> Self {
        match refused {
            OpenRefused::ConversationEnded => conversation_ended(),
        }
    }
}

impl From<LookupRefused> for Refusal {
    fn from(refused: LookupRefused) -> Self {
        match refused {
            LookupRefused::ConversationNotFound => conversation_not_found(),
            LookupRefused::WorkItemNotFound => work_item_not_found(),
        }
    }
}

const ISSUED_OR_NOT: &str =
    "the outcome is unknown; without an Idempotency-Key, sending the request again can issue the work twice";

/// The response if the store failed to issue a work item. If the outcome is unknown and there is no idempotency key,
/// the message says that a repetition is not safe.
pub(super) fn issue_failed(error: StoreError, has_idempotency_key: bool) -> Refusal {
    let is_repeatable = has_idempotency_key || !matches!(error, StoreError::OutcomeUnknown(_));
    let mut refusal = Refusal::from(error);
    if !is_repeatable {
        refusal.message = ISSUED_OR_NOT.into();
    }
    refusal
}

impl From<IssueRefused> for Refusal {
    fn from(refused: IssueRefused) -> Self {
        let (code, message) = match refused {
            IssueRefused::ConversationNotFound => return conversation_not_found(),
            IssueRefused::ConversationEnded => return conversation_ended(),
            IssueRefused::IdempotencyConflict => {
                (Code::IdempotencyKeyReused, "the idempotency key was used with another body")
            }
            IssueRefused::AwaitingLimit => {
                (Code::AwaitingLimit, "the conversation has reached its limit of awaiting work items")
            }
            IssueRefused::ChannelLimit => (
                Code::ChannelLimit,
                "the conversation's channel has reached its limit; open another conversation",
            ),
        };
        Self::new(code, message)
    }
}

impl From<CancelTurnRefused> for Refusal {
    fn from(refused: CancelTurnRefused) -> Self {
        match refused {
            CancelTurnRefused::ConversationNotFound => conversation_not_found(),
            CancelTurnRefused::ConversationEnded => conversation_ended(),
        }
    }
}

impl From<CancelRefused> for Refusal {
    fn from(refused: CancelRefused) -> Self {
        match refused {
            CancelRefused::ConversationNotFound => conversation_not_found(),
            CancelRefused::ConversationEnded => conversation_ended(),
            CancelRefused::WorkItemNotFound => work_item_not_found(),
            CancelRefused::WorkItemSettled(outcome) => {
                let message = format!("the work item is settled: {outcome}");
                Self::new(Code::WorkItemSettled, message).with_outcome(outcome)
            }
        }
    }
}
