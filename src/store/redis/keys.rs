//! The only place that spells keys.
//!
//! All keys of a conversation, and the timers of its partition, bear the partition's hash tag: in a cluster they are in
//! one slot.

use std::str::FromStr;

use crate::domain::ids::{ConversationRef, Sequence, WorkItemId};

/// Holds the version of the layout, and the number of partitions that the deployment was started with.
pub(super) const LAYOUT: &str = "cb:layout";

/// Spells keys for a number of partitions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys {
    pub(super) partitions: u16,
}

impl Keys {
    pub(super) fn partition(self, conversation: ConversationRef) -> u16 {
        conversation.partition(self.partitions)
    }

    fn of(self, conversation: ConversationRef, what: &str) -> String {
        format!("{{cb:{}}}:{what}:{conversation}", self.partition(conversation))
    }

    /// The keys of a conversation that every operation declares, in the order of `conversation.lua`.
    pub(super) fn conversation(self, conversation: ConversationRef) -> [String; 5] {
        let partition = self.partition(conversation);
        [
            self.of(conversation, "conversation"),
            self.channel(conversation),
            Self::timers(partition),
            self.of(conversation, "held"),
            Self::totals(partition),
        ]
    }

    /// The routing channel: a stream. What is published under the same name wakes its readers.
    pub(super) fn channel(self, conversation: ConversationRef) -> String {
        self.of(conversation, "channel")
    }

    /// Where changes of a channel are published: a pub/sub channel of the same name.
    pub(super) fn wake(self, conversation: ConversationRef) -> String {
        self.channel(conversation)
    }

    /// The timers of a partition: a sorted set.
    pub(super) fn timers(partition: u16) -> String {
        format!("{{cb:{partition}}}:timers")
    }

    /// What the conversations of a partition hold, added up: a hash.
    pub(super) fn totals(partition: u16) -> String {
        format!("{{cb:{partition}}}:totals")
    }

    /// The mark that a token was used: the fingerprint of the body that spent it.
    pub(super) fn used(self, conversation: ConversationRef, work_item: WorkItemId) -> String {
        format!("{}:{work_item}", self.of(conversation, "used"))
    }

    /// The partitions that have a timer in a second: a set.
    pub(super) fn announced(second: u64) -> String {
        format!("{{cb:due}}:{second}")
    }

    /// Written in a conversation's partition while replicas are waited for.
    pub(super) fn fence(self, conversation: ConversationRef) -> String {
        format!("{{cb:{}}}:fence", self.partition(conversation))
    }

    /// A key of a partition that nothing is kept under, and a pub/sub channel that nobody listens to.
    pub(super) fn probe(partition: u16) -> (String, String) {
        (format!("{{cb:{partition}}}:probe"), format!("{{cb:{partition}}}:channel:probe"))
    }

    /// Written in a partition when the check of its node's health waits for replicas.
    pub(super) fn health(partition: u16) -> String {
        format!("{{cb:{partition}}}:health")
    }
}

/// The conversation that a pub/sub channel of [`Keys::channel`] is about.
pub(super) fn woken(channel: &str) -> Option<ConversationRef> {
    ConversationRef::from_str(channel.rsplit(':').next()?).ok()
}

/// The member of a set of timers for a conversation as a whole, or for an item of it.
pub(super) fn marker(conversation: ConversationRef, sequence: Option<Sequence>) -> String {
    match sequence {
        Some(sequence) => format!("{conversation}:{sequence}"),
        None => conversation.to_string(),
    }
}

/// What a member of a set of timers is about.
pub(super) fn marked(member: &str) -> Option<(ConversationRef, Option<Sequence>)> {
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
        assert_eq!(woken(&keys.channel(conversation)), Some(conversation));
    }

    #[test]
    fn a_marker_is_read_back() {
        let conversation = ConversationId::parse("call-1").unwrap().reference();
        for sequence in [None, Some(Sequence::new(17))] {
            assert_eq!(marked(&marker(conversation, sequence)), Some((conversation, sequence)));
        }
        assert_eq!((marked("x"), marked("x:1")), (None, None));
    }
}
