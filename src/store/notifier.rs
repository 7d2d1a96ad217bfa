//! Notifies the listeners in this process of changes to channels, and passes progress events of work items to them.
//!
//! Progress events that a listener has not read yet are kept within bounds. Beyond the bounds, the oldest is dropped.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};

use crate::domain::ids::ConversationRef;
use crate::domain::progress::ProgressJson;

/// Maximum number of progress events that are kept for the listeners of a channel.
const MAX_EVENTS: usize = 32;
/// Maximum number of progress events that a listener gets in a row while a change is pending.
const MAX_BEFORE_CHANGE: usize = 8;
/// Maximum total size in bytes of the progress events that are kept for all listeners.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// The first listener of a channel was added, or its last one was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchEvent {
    Started(ConversationRef),
    Stopped(ConversationRef),
}

/// The changes and progress events of a channel, as its listeners see them.
#[derive(Debug, Default)]
struct Notices {
    /// Number of changes.
    changes: u64,
    /// The latest progress events, each with its number.
    progress: VecDeque<(u64, ProgressJson)>,
}

/// The channels that have listeners.
#[derive(Debug, Default)]
struct Senders {
    channels: HashMap<ConversationRef, watch::Sender<Notices>>,
    /// Number of progress events so far.
    published: u64,
    /// Channel, number and size of the progress events, in order. Some of them may no longer be kept in their channel.
    /// `bytes` is their total size.
    kept: VecDeque<(ConversationRef, u64, usize)>,
    bytes: usize,
}

impl Senders {
    fn publish(&mut self, conversation: ConversationRef, progress: ProgressJson) {
        let Some(sender) = self.channels.get(&conversation) else { return };
        self.published += 1;
        let (number, size) = (self.published, progress.bytes().len());
        sender.send_modify(|notices| {
            notices.progress.push_back((number, progress));
            if notices.progress.len() > MAX_EVENTS {
                notices.progress.pop_front();
            }
        });
        self.kept.push_back((conversation, number, size));
        self.bytes += size;
        while self.bytes > MAX_BYTES
            && let Some((conversation, number, size)) = self.kept.pop_front()
        {
            self.bytes -= size;
            let Some(sender) = self.channels.get(&conversation) else { continue };
            sender.send_if_modified(|notices| {
                notices.progress.retain(|(kept, _)| *kept != number);
                false
            });
        }
    }
}

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
        let receiver = if let Some(sender) = senders.channels.get(&conversation) {
            sender.subscribe()
        } else {
            let (sender, receiver) = watch::channel(Notices::default());
            senders.channels.insert(conversation, sender);
            self.emit(WatchEvent::Started(conversation));
            receiver
        };
        let (seen_changes, seen_progress) = (receiver.borrow().changes, senders.published);
        let notifier = self.clone();
        ChannelListener {
            conversation,
            receiver: Some(receiver),
            seen_changes,
            seen_progress,
            progress_in_a_row: 0,
            notifier,
        }
    }

    /// Notifies the listeners of a channel.
    pub(super) fn notify(&self, conversation: ConversationRef) {
        if let Some(sender) = self.senders().channels.get(&conversation) {
            sender.send_modify(|notices| notices.changes += 1);
        }
    }

    /// Passes a progress event to the listeners of a channel.
    pub(super) fn publish(&self, conversation: ConversationRef, progress: ProgressJson) {
        self.senders().publish(conversation, progress);
    }

    /// Notifies all listeners, because changes may have been missed.
    pub(super) fn notify_all(&self) {
        for sender in self.senders().channels.values() {
            sender.send_modify(|notices| notices.changes += 1);
        }
    }

    /// The channels that have listeners.
    pub(super) fn watched(&self) -> Vec<ConversationRef> {
        self.senders().channels.keys().copied().collect()
    }
}

/// What a [`ChannelListener`] waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The channel has changed.
    Changed,
    /// The provider of a work item has reported progress.
    Progress(ProgressJson),
}

/// Waits for changes to a channel and for progress events. Several changes between two waits count as one.
#[derive(Debug)]
pub struct ChannelListener {
    conversation: ConversationRef,
    receiver: Option<watch::Receiver<Notices>>,
    seen_changes: u64,
    /// The number of the last progress event that was seen.
    seen_progress: u64,
    /// Number of progress events since the last change.
    progress_in_a_row: usize,
    notifier: ChannelNotifier,
}

impl ChannelListener {
    /// Marks all changes up to now as seen. Call it before reading the channel.
    pub fn mark_seen(&mut self) {
        if let Some(receiver) = &self.receiver {
            self.seen_changes = receiver.borrow().changes;
        }
    }

    /// Waits for the next change. Cancel-safe: no change is lost.
    pub async fn changed(&mut self) {
        let seen = self.seen_changes;
        self.seen_changes =
            self.wait_for(|notices| (notices.changes != seen).then_some(notices.changes)).await;
    }

    /// Waits for a progress event or a change. Cancel-safe. Progress events that are not read in time are dropped.
    pub async fn next(&mut self) -> Notice {
        let (seen_changes, seen_progress) = (self.seen_changes, self.seen_progress);
        // Progress comes first, because it is older than the result. The limit keeps it from delaying the change
        // forever.
        let change_is_next = self.progress_in_a_row >= MAX_BEFORE_CHANGE;
        let (changes, progress) = self
            .wait_for(|notices| {
                let new = notices.progress.iter().find(|(number, _)| *number > seen_progress);
                let has_changed = notices.changes != seen_changes;
                match new.filter(|_| !(change_is_next && has_changed)) {
                    Some(progress) => Some((seen_changes, Some(progress.clone()))),
                    None => has_changed.then_some((notices.changes, None)),
                }
            })
            .await;
        self.seen_changes = changes;
        if let Some((number, progress)) = progress {
            self.seen_progress = number;
            self.progress_in_a_row += 1;
            Notice::Progress(progress)
        } else {
            self.progress_in_a_row = 0;
            Notice::Changed
        }
    }

    /// Waits until `find` returns something.
    async fn wait_for<T>(&mut self, find: impl Fn(&Notices) -> Option<T>) -> T {
        if let Some(receiver) = &mut self.receiver
            && let Ok(notices) = receiver.wait_for(|notices| find(notices).is_some()).await
            && let Some(found) = find(&notices)
        {
            return found;
        }
        std::future::pending().await
    }
}

impl Drop for ChannelListener {
    fn drop(&mut self) {
        self.receiver = None;
        let mut senders = self.notifier.senders();
        if senders.channels.get(&self.conversation).is_some_and(|sender| sender.receiver_count() == 0) {
            senders.channels.remove(&self.conversation);
            self.notifier.emit(WatchEvent::Stopped(self.conversation));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

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

    fn progress(number: usize, size: usize) -> ProgressJson {
        ProgressJson::new(format!("{number}{}", " ".repeat(size)).into())
    }

    #[tokio::test]
    async fn each_listener_gets_progress_once_and_before_a_change() {
        let notifier = ChannelNotifier::new(None);
        let [channel, other] = ["a", "b"].map(|id| ConversationId::parse(id).unwrap().reference());
        notifier.publish(channel, progress(0, 1));
        let mut first = notifier.watch(channel);
        notifier.publish(channel, progress(1, 1));
        let mut late = notifier.watch(channel);
        notifier.notify(channel);
        notifier.publish(other, progress(9, 1));
        notifier.publish(channel, progress(2, 1));
        let mut told = Vec::new();
        for _ in 0..3 {
            told.push(first.next().await);
        }
        let progress = |number| Notice::Progress(progress(number, 1));
        assert_eq!(told, [progress(1), progress(2), Notice::Changed]);
        assert_eq!(late.next().await, progress(2));
        late.mark_seen();
        assert!(late.next().now_or_never().is_none() && first.next().now_or_never().is_none());
    }

    #[tokio::test]
    async fn unread_progress_is_bounded_and_a_change_is_not_lost() {
        let notifier = ChannelNotifier::new(None);
        let channel = ConversationId::parse("a").unwrap().reference();
        let mut slow = notifier.watch(channel);
        notifier.notify(channel);
        (0..100).for_each(|number| notifier.publish(channel, progress(number, 8)));
        assert_eq!(slow.next().await, Notice::Progress(progress(100 - MAX_EVENTS, 8)));
        for number in 1..MAX_BEFORE_CHANGE {
            assert_eq!(slow.next().await, Notice::Progress(progress(100 - MAX_EVENTS + number, 8)));
        }
        assert_eq!(slow.next().await, Notice::Changed);
        let other = ConversationId::parse("b").unwrap().reference();
        let mut large = notifier.watch(other);
        notifier.publish(other, progress(7, MAX_BYTES - 11));
        assert_eq!(slow.next().await, Notice::Progress(progress(99, 8)), "the oldest are dropped first");
        assert_eq!(large.next().await, Notice::Progress(progress(7, MAX_BYTES - 11)));
        assert!(notifier.senders().bytes <= MAX_BYTES);
    }
}
