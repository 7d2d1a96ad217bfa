//! Subscribes to the pub/sub notifications of all channels that have listeners, over one connection.
//!
//! Messages are lost while there is no connection. Event streams therefore also poll, and all listeners are notified
//! after each reconnection.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use redis::RedisResult;
use tokio::sync::mpsc;
use tokio::time::{interval, sleep, timeout};

use super::keys::{Keys, conversation_of};
use super::nodes::Nodes;
use super::settings::ConnectionSettings;
use crate::domain::ids::ConversationRef;
use crate::domain::progress::ProgressJson;
use crate::store::notifier::{ChannelNotifier, WatchEvent};

/// Delay before reconnecting.
const RECONNECT_DELAY: Duration = Duration::from_millis(250);
/// Interval of `PING`, which detects a dead connection.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum number of channels per `SUBSCRIBE` or `UNSUBSCRIBE`, because Redis executes no other command in the
/// meantime.
const CHANNELS_PER_COMMAND: usize = 1_000;

/// Runs until the last sender of events is dropped. Connects only while `verified` is set and a channel has listeners.
pub(super) async fn listen(
    nodes: Arc<Nodes>,
    settings: ConnectionSettings,
    keys: Keys,
    notifier: ChannelNotifier,
    mut events: mpsc::UnboundedReceiver<WatchEvent>,
    verified: Arc<AtomicBool>,
) {
    let mut logged = false;
    loop {
        discard(&mut events);
        // Without listeners, no connection is needed.
        if notifier.watched().is_empty() && events.recv().await.is_none() {
            return;
        }
        if verified.load(Ordering::Acquire) {
            match listen_once(&nodes, settings, keys, &notifier, &mut events, &mut logged).await {
                Ok(()) => return,
                // Logged once per lost connection, not per attempt.
                Err(error) if !logged => {
                    tracing::warn!(
                        name: "store.watch_lost",
                        error = %error,
                        "no pub/sub connection to Redis; event streams poll until there is one"
                    );
                    logged = true;
                }
                Err(_) => {}
            }
        }
        sleep(RECONNECT_DELAY).await;
    }
}

/// Drops the queued events, because `watched` already includes their effect. Keeps the queue short while there is no
/// connection.
fn discard(events: &mut mpsc::UnboundedReceiver<WatchEvent>) {
    while events.try_recv().is_ok() {}
}

async fn listen_once(
    nodes: &Nodes,
    settings: ConnectionSettings,
    keys: Keys,
    notifier: &ChannelNotifier,
    events: &mut mpsc::UnboundedReceiver<WatchEvent>,
    logged: &mut bool,
) -> RedisResult<()> {
    let connection = nodes.listen(settings.connect).await?;
    *logged = false;
    let (mut sink, mut messages) = connection.split();
    discard(events);
    for chunk in notifier.watched().chunks(CHANNELS_PER_COMMAND) {
        with_timeout(settings, sink.subscribe(channels(keys, chunk))).await?;
    }
    notifier.notify_all();
    let mut ping = interval(PING_INTERVAL);
    let mut changes = Vec::new();
    loop {
        tokio::select! {
            message = messages.next() => match message {
                Some(message) => {
                    if let Some(conversation) = conversation_of(message.get_channel_name()) {
                        // The message of a change is empty. The message of progress is the event.
                        match message.get_payload_bytes() {
                            [] => notifier.notify(conversation),
                            progress => {
                                let progress = ProgressJson::new(Bytes::copy_from_slice(progress));
                                notifier.publish(conversation, progress);
                            }
                        }
                    }
                }
                None => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            },
            count = events.recv_many(&mut changes, CHANNELS_PER_COMMAND) => {
                if count == 0 {
                    return Ok(());
                }
                let (started, stopped) = latest(changes.drain(..));
                // `UNSUBSCRIBE` without arguments unsubscribes from all channels.
                if !stopped.is_empty() {
                    with_timeout(settings, sink.unsubscribe(channels(keys, &stopped))).await?;
                }
                if !started.is_empty() {
                    with_timeout(settings, sink.subscribe(channels(keys, &started))).await?;
                }
                // Messages before the subscription may have been missed.
                for conversation in started {
                    notifier.notify(conversation);
                }
            }
            _ = ping.tick() => {
                with_timeout(settings, sink.ping::<redis::Value>()).await?;
            }
        }
    }
}

/// The channels to subscribe to, and those to unsubscribe from. Only the last event of each channel counts.
fn latest(changes: impl Iterator<Item = WatchEvent>) -> (Vec<ConversationRef>, Vec<ConversationRef>) {
    let mut watched = HashMap::new();
    for change in changes {
        match change {
            WatchEvent::Started(conversation) => watched.insert(conversation, true),
            WatchEvent::Stopped(conversation) => watched.insert(conversation, false),
        };
    }
    let in_state = |state: bool| {
        watched.iter().filter(|(_, is_watched)| **is_watched == state).map(|(channel, _)| *channel).collect()
    };
    (in_state(true), in_state(false))
}

fn channels(keys: Keys, conversations: &[ConversationRef]) -> Vec<String> {
    conversations.iter().map(|conversation| keys.pubsub_channel(*conversation)).collect()
}

/// Applies the response timeout.
async fn with_timeout<T>(
    settings: ConnectionSettings,
    reply: impl Future<Output = RedisResult<T>>,
) -> RedisResult<T> {
    timeout(settings.response, reply).await.map_err(std::io::Error::from)?
}
