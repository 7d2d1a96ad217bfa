//! Notifies the listeners in this process of changes of channels.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};

use crate::domain::ids::ConversationRef;

/// The first listener of a channel was added, or its last one was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchEvent {
    Started(ConversationRef),
    Stopped(ConversationRef),
}

type Senders = HashMap<ConversationRef, watch::Sender<()>>;

/// The channels of this process that have listeners.
#[derive(Clone, Debug)]
pub(super) struct ChannelNotifier {
    senders: Arc<Mutex<Senders>>,
    events: Option<mpsc::UnboundedSender<WatchEvent>>,
}

impl ChannelNotifier {
    /// A notifier without listeners. It sends its [`WatchEvent`]s to `events`.
    pub(super) fn new(events: Option<mpsc::UnboundedSender<WatchEvent>>) -> Self {
        Self { senders: Arc::default(), events }
    }

    /// A handle for the receiver of the events. It holds no sender of events, so the receiver ends when all other
    /// handles are dropped.
    pub(super) fn without_events(&self) -> Self {
        Self { senders: Arc::clone(&self.senders), events: None }
    }

    fn senders(&self) -> MutexGuard<'_, Senders> {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn emit(&self, event: WatchEvent) {
        if let Some(sender) = &self.events {
            // The receiver is dropped only when the process ends.
            let _ = sender.send(event);
        }
    }

    pub(super) fn watch(&self, conversation: ConversationRef) -> ChannelListener {
        let mut senders = self.senders();
        let receiver = if let Some(sender) = senders.get(&conversation) {
            sender.subscribe()
        } else {
            let (sender, receiver) = watch::channel(());
            senders.insert(conversation, sender);
            self.emit(WatchEvent::Started(conversation));
            receiver
        };
        ChannelListener { conversation, receiver: Some(receiver), notifier: self.clone() }
    }

    /// Notifies the listeners of a channel.
    pub(super) fn notify(&self, conversation: ConversationRef) {
        if let Some(sender) = self.senders().get(&conversation) {
            sender.send_replace(());
        }
    }

    /// Notifies all listeners, because changes may have been missed.
    pub(super) fn notify_all(&self) {
        self.senders().values().for_each(|sender| {
            sender.send_replace(());
        });
    }

    /// The channels that have listeners.
    pub(super) fn watched(&self) -> Vec<ConversationRef> {
        self.senders().keys().copied().collect()
    }
}

/// Waits for changes of a channel. Changes between two waits count as one.
#[derive(Debug)]
pub struct ChannelListener {
    conversation: ConversationRef,
    receiver: Option<watch::Receiver<()>>,
    notifier: ChannelNotifier,
}

impl ChannelListener {
    /// Marks all changes up to now as seen. Call it before reading the channel.
    pub fn mark_seen(&mut self) {
        if let Some(receiver) = &mut self.receiver {
            receiver.mark_unchanged();
        }
    }

    /// Waits for the next change. Cancel-safe: no change is lost.
    pub async fn changed(&mut self) {
        if let Some(receiver) = &mut self.receiver
            && receiver.changed().await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}

impl Drop for ChannelListener {
    fn drop(&mut self) {
        self.receiver = None;
        let mut senders = self.notifier.senders();
        if senders.get(&self.conversation).is_some_and(|sender| sender.receiver_count() == 0) {
            senders.remove(&self.conversation);
            self.notifier.emit(WatchEvent::Stopped(self.conversation));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::ConversationId;

    #[tokio::test]
    async fn only_the_first_and_the_last_listener_cause_events() {
        let (sender, mut events) = mpsc::unbounded_channel();
        let notifier = ChannelNotifier::new(Some(sender));
        let channel = ConversationId::parse("a").unwrap().reference();
        let mut first = notifier.watch(channel);
        let second = notifier.watch(channel);
        assert_eq!(events.recv().await, Some(WatchEvent::Started(channel)));
        notifier.notify(channel);
        first.changed().await;
        drop(second);
        assert_eq!(notifier.watched(), [channel]);
        drop(first);
        assert_eq!(events.recv().await, Some(WatchEvent::Stopped(channel)));
        assert_eq!(notifier.watched(), []);
    }
}
