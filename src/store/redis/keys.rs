//! Builds all Redis keys.
//!
//! All keys of a conversation and of its partition share the partition's hash tag, so that a cluster stores them in
//! one slot and a script can use them together.

use std::str::FromStr;

use crate::domain::ids::{ConversationRef, Sequence, WorkItemId};

/// The version of the data layout and the deployment's number of partitions.
pub(super) const LAYOUT: &str = "cb:layout";

/// Builds keys for a deployment with this number of partitions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys {
    pub(super) partitions: u16,
}

impl Keys {
    pub(super) fn partition(self, conversation: ConversationRef) -> u16 {
        conversation.partition(self.partitions)
    }

    fn of(self, conversation: ConversationRef, kind: &str) -> String {
        format!("{{cb:{}}}:{kind}:{conversation}", self.partition(conversation))
    }

    /// `KEYS` 1 to 6 of every conversation script, in the order of `conversation.lua`.
    pub(super) fn conversation(self, conversation: ConversationRef) -> [String; 6] {
        let partition = self.partition(conversation);
        [
            self.of(conversation, "conversation"),
            self.channel(conversation),
            Self::timers(partition),
            self.of(conversation, "held"),
            Self::totals(partition),
            Self::waiting(partition),
        ]
    }

    /// The routing channel: a stream.
    pub(super) fn channel(self, conversation: ConversationRef) -> String {
        self.of(conversation, "channel")
    }

    /// The pub/sub channel on which changes to the routing channel are published. It has the same name.
    pub(super) fn pubsub_channel(self, conversation: ConversationRef) -> String {
        self.channel(conversation)
    }

    /// The timers of a partition: a sorted set by time.
    pub(super) fn timers(partition: u16) -> String {
        format!("{{cb:{partition}}}:timers")
    }

    /// The totals of a partition: a hash.
    pub(super) fn totals(partition: u16) -> String {
        format!("{{cb:{partition}}}:totals")
    }

    /// The conversations of a partition with held results: a sorted set by the time of the oldest held result.
    pub(super) fn waiting(partition: u16) -> String {
        format!("{{cb:{partition}}}:waiting")
    }

    /// Set when a token is used: a string that contains the fingerprint of the accepted body.
    pub(super) fn used(self, conversation: ConversationRef, work_item: WorkItemId) -> String {
        format!("{}:{work_item}", self.of(conversation, "used"))
    }

    /// The partitions that have a timer in this second (Unix time): a set.
    pub(super) fn announced(second: u64) -> String {
        format!("{{cb:due}}:{second}")
    }

    /// The key that is written in a conversation's partition before the store waits for replicas (`WAIT`).
    pub(super) fn barrier(self, conversation: ConversationRef) -> String {
        format!("{{cb:{}}}:barrier", self.partition(conversation))
    }

    /// An unused key of a partition, and a pub/sub channel without subscribers, for `probe.lua`.
    pub(super) fn probe(partition: u16) -> (String, String) {
        (format!("{{cb:{partition}}}:probe"), format!("{{cb:{partition}}}:channel:probe"))
    }

    /// The key that the health check of a node writes in a partition before it waits for replicas.
    pub(super) fn health(partition: u16) -> String {
        format!("{{cb:{partition}}}:health")
    }
}

/// The conversation of a pub/sub channel named by [`Keys::pubsub_channel`].
pub(super) fn conversation_of(channel: &str) -> Option<ConversationRef> {
    ConversationRef::from_str(channel.rsplit(':').next()?).ok()
}

/// The member of the timer set for an item; without a sequence, for the conversation as a whole.
pub(super) fn timer_member(conversation: ConversationRef, sequence: Option<Sequence>) -> String {
    match sequence {
        Some(sequence) => format!("{conversation}:{sequence}"),
        None => conversation.to_string(),
    }
}

/// Parses a member of the timer set: the inverse of [`timer_member`].
pub(super) fn parse_timer_member(member: &str) -> Option<(ConversationRef, Option<Sequence>)> {
    match member.split_once(':') {
        Some((conversation, sequence)) => {
            Some((conversation.parse().ok()?, Some(Sequence::new(sequence.parse().ok()?))))
        }
        None => Some((member.parse().ok()?, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::ConversationId;

    #[test]
    fn all_keys_of_a_conversation_and_its_timers_share_a_hash_tag() {
        let keys = Keys { partitions: 64 };
        let conversation = ConversationId::parse("call-1").unwrap().reference();
        let tag = format!("{{cb:{}}}:", conversation.partition(64));
        let item = WorkItemId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap();
        let mut all = keys.conversation(conversation).to_vec();
        all.push(keys.used(conversation, item));
        assert!(all.iter().all(|key| key.starts_with(&tag)), "{all:?}");
        assert_eq!(conversation_of(&keys.channel(conversation)), Some(conversation));
    }

    #[test]
    fn timer_members_round_trip() {
        let conversation = ConversationId::parse("call-1").unwrap().reference();
        for sequence in [None, Some(Sequence::new(17))] {
            assert_eq!(
                parse_timer_member(&timer_member(conversation, sequence)),
                Some((conversation, sequence))
            );
        }
        assert_eq!((parse_timer_member("x"), parse_timer_member("x:1")), (None, None));
    }
}
