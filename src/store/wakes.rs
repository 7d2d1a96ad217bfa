//! Who watches which channel in this process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};

use crate::domain::ids::ConversationRef;

/// The first watcher of a channel came, or the last one left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    Begins(ConversationRef),
    Ends(ConversationRef),
}

type Senders = HashMap<ConversationRef, watch::Sender<()>>;

/// The watched channels of this process.
#[derive(Clone, Debug)]
pub(super) struct Wakes {
    senders: Arc<Mutex<Senders>>,
    interest: Option<mpsc::UnboundedSender<Interest>>,
}

impl Wakes {
    /// A registry that tells `interest`, if there is one, when a channel begins or ends to be watched.
    pub(super) fn new(interest: Option<mpsc::UnboundedSender<Interest>>) -> Self {
        Self { senders: Arc::default(), interest }
    }

    /// The same registry for whoever listens: while it holds only this, nobody can be interested any more.
    pub(super) fn without_interest(&self) -> Self {
        Self { senders: Arc::clone(&self.senders), interest: None }
    }

    fn senders(&self) -> MutexGuard<'_, Senders> {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, interest: Interest) {
        if let Some(sender) = &self.interest {
            // Nobody listens only while the process ends.
            let _ = sender.send(interest);
        }
    }

    pub(super) fn watch(&self, conversation: ConversationRef) -> Wake {
        let mut senders = self.senders();
        let receiver = if let Some(sender) = senders.get(&conversation) {
            sender.subscribe()
        } else {
            let (sender, receiver) = watch::channel(());
            senders.insert(conversation, sender);
            self.tell(Interest::Begins(conversation));
            receiver
        };
        Wake { conversation, receiver: Some(receiver), wakes: self.clone() }
    }

    /// Wakes whoever watches this channel.
    pub(super) fn wake(&self, conversation: ConversationRef) {
        if let Some(sender) = self.senders().get(&conversation) {
            sender.send_replace(());
        }
    }

    /// Wakes everybody: what happened meanwhile is not known.
    pub(super) fn wake_all(&self) {
        self.senders().values().for_each(|sender| {
            sender.send_replace(());
        });
    }

    /// The channels that are watched now.
    pub(super) fn watched(&self) -> Vec<ConversationRef> {
        self.senders().keys().copied().collect()
    }
}

/// Fires after a change of one channel. Changes between two waits are one.
#[derive(Debug)]
pub struct Wake {
    conversation: ConversationRef,
    receiver: Option<watch::Receiver<()>>,
    wakes: Wakes,
}

impl Wake {
    /// Counts the changes up to now as seen: what is read from now on shows them.
    pub fn mark_seen(&mut self) {
        if let Some(receiver) = &mut self.receiver {
            receiver.mark_unchanged();
        }
    }

    /// Waits for the next change.
    pub async fn changed(&mut self) {
        if let Some(receiver) = &mut self.receiver
            && receiver.changed().await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        self.receiver = None;
        let mut senders = self.wakes.senders();
        if senders.get(&self.conversation).is_some_and(|sender| sender.receiver_count() == 0) {
            senders.remove(&self.conversation);
            self.wakes.tell(Interest::Ends(self.conversation));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::ConversationId;

    #[tokio::test]
    async fn interest_begins_with_the_first_watcher_and_ends_with_the_last() {
        let (sender, mut interest) = mpsc::unbounded_channel();
        let wakes = Wakes::new(Some(sender));
        let channel = ConversationId::parse("a").unwrap().reference();
        let mut first = wakes.watch(channel);
        let second = wakes.watch(channel);
        assert_eq!(interest.recv().await, Some(Interest::Begins(channel)));
        wakes.wake(channel);
        first.changed().await;
        drop(second);
        assert_eq!(wakes.watched(), [channel]);
        drop(first);
        assert_eq!(interest.recv().await, Some(Interest::Ends(channel)));
        assert_eq!(wakes.watched(), []);
    }
}
