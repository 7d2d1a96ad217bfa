//! The only place that spells keys.
//!
//! All keys of a conversation, and the deadlines of its partition, bear the partition's hash tag: in a cluster they
//! are in one slot.

use std::str::FromStr;

use crate::domain::ids::{ConversationRef, WorkItemId};

/// Holds the number of partitions that the deployment was started with.
pub(super) const LAYOUT: &str = "cb:layout";

/// Spells keys for a number of partitions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys {
    pub(super) partitions: u16,
}

impl Keys {
    fn of(self, conversation: ConversationRef, what: &str) -> String {
        format!("{{cb:{}}}:{what}:{conversation}", conversation.partition(self.partitions))
    }

    /// The keys of a conversation that every operation declares, in the order of `gate.lua`.
    pub(super) fn conversation(self, conversation: ConversationRef) -> [String; 6] {
        [
            self.of(conversation, "conversation"),
            self.of(conversation, "items"),
            self.of(conversation, "held"),
            self.channel(conversation),
            Self::deadlines(conversation.partition(self.partitions)),
            Self::totals(conversation.partition(self.partitions)),
        ]
    }

    /// The routing channel: a stream.
    pub(super) fn channel(self, conversation: ConversationRef) -> String {
        self.of(conversation, "channel")
    }

    /// The deadlines of a partition: a sorted set.
    pub(super) fn deadlines(partition: u16) -> String {
        format!("{{cb:{partition}}}:deadlines")
    }

    /// What the conversations of a partition hold, added up: a hash.
    pub(super) fn totals(partition: u16) -> String {
        format!("{{cb:{partition}}}:totals")
    }

    /// The mark that a token was used: the fingerprint of the body that spent it.
    pub(super) fn used(self, conversation: ConversationRef, work_item: WorkItemId) -> String {
        format!("{}:{work_item}", self.of(conversation, "used"))
    }

    /// Written in a conversation's partition while replicas are waited for.
    pub(super) fn fence(self, conversation: ConversationRef) -> String {
        format!("{{cb:{}}}:fence", conversation.partition(self.partitions))
    }

    /// A key of a partition that nothing is kept under, and a pub/sub channel that nobody listens to.
    pub(super) fn probe(partition: u16) -> (String, String) {
        (format!("{{cb:{partition}}}:probe"), format!("{{cb:{partition}}}:wake:probe"))
    }

    /// Written in a partition when the check of its node's health waits for replicas.
    pub(super) fn health(partition: u16) -> String {
        format!("{{cb:{partition}}}:health")
    }

    /// Where changes of a channel are published (a pub/sub channel, not a key).
    pub(super) fn wake(self, conversation: ConversationRef) -> String {
        self.of(conversation, "wake")
    }
}

/// The conversation that a pub/sub channel of [`Keys::wake`] is about.
pub(super) fn woken(channel: &str) -> Option<ConversationRef> {
    ConversationRef::from_str(channel.rsplit(':').next()?).ok()
}

/// The conversation and the work item that a member of a deadlines set is about.
pub(super) fn deadline_member(member: &str) -> Option<(ConversationRef, WorkItemId)> {
    let (conversation, work_item) = member.split_once('/')?;
    Some((conversation.parse().ok()?, WorkItemId::parse(work_item)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::ConversationId;

    #[test]
    fn all_keys_of_a_conversation_and_its_deadlines_share_a_hash_tag() {
        let keys = Keys { partitions: 64 };
        let conversation = ConversationId::parse("call-1").unwrap().reference();
        let tag = format!("{{cb:{}}}:", conversation.partition(64));
        let item = WorkItemId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap();
        let mut all = keys.conversation(conversation).to_vec();
        all.extend([keys.used(conversation, item), keys.wake(conversation)]);
        assert!(all.iter().all(|key| key.starts_with(&tag)), "{all:?}");
        assert_eq!(woken(&keys.wake(conversation)), Some(conversation));
        assert_eq!(deadline_member(&format!("{conversation}/{item}")), Some((conversation, item)));
        assert_eq!(deadline_member("x"), None);
    }
}
