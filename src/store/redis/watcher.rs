//! One connection that listens for the channels watched in this process, however many there are.
//!
//! A notice may be lost with the connection: whoever reads a channel also looks again now and then, and everybody is
//! woken when the connection is back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use redis::RedisResult;
use tokio::sync::mpsc;
use tokio::time::{interval, sleep, timeout};

use super::keys::{Keys, woken};
use super::link::ConnectionLimits;
use super::nodes::Nodes;
use crate::domain::ids::ConversationRef;
use crate::store::wakes::{Interest, Wakes};

/// How long after a failure the next connection is tried.
const RETRY: Duration = Duration::from_millis(250);
/// How often a silent connection is asked whether it lives.
const PING: Duration = Duration::from_secs(5);
/// Most channels that one command subscribes to or unsubscribes from: Redis serves nobody else meanwhile.
const CHANNELS_AT_ONCE: usize = 1_000;

/// Listens until nobody can be interested any more.
pub(super) async fn listen(
    nodes: Arc<Nodes>,
    limits: ConnectionLimits,
    keys: Keys,
    wakes: Wakes,
    mut interest: mpsc::UnboundedReceiver<Interest>,
    verified: Arc<AtomicBool>,
) {
    let mut told = false;
    loop {
        forget(&mut interest);
        // Nothing to listen to, and no connection to spend, until somebody watches.
        if wakes.watched().is_empty() && interest.recv().await.is_none() {
            return;
        }
        if verified.load(Ordering::Acquire) {
            match listen_once(&nodes, limits, keys, &wakes, &mut interest, &mut told).await {
                Ok(()) => return,
                // Once, and not with every try.
                Err(error) if !told => {
                    tracing::warn!(error = %error, "the watching connection to the store was lost");
                    told = true;
                }
                Err(_) => {}
            }
        }
        sleep(RETRY).await;
    }
}

/// What is watched is known without them, and while nobody listens they would pile up.
fn forget(interest: &mut mpsc::UnboundedReceiver<Interest>) {
    while interest.try_recv().is_ok() {}
}

async fn listen_once(
    nodes: &Nodes,
    limits: ConnectionLimits,
    keys: Keys,
    wakes: &Wakes,
    interest: &mut mpsc::UnboundedReceiver<Interest>,
    told: &mut bool,
) -> RedisResult<()> {
    let connection = nodes.listen(limits.connect).await?;
    *told = false;
    let (mut sink, mut notices) = connection.split();
    forget(interest);
    for some in wakes.watched().chunks(CHANNELS_AT_ONCE) {
        in_time(limits, sink.subscribe(channels(keys, some))).await?;
    }
    wakes.wake_all();
    let mut ping = interval(PING);
    let mut changes = Vec::new();
    loop {
        tokio::select! {
            notice = notices.next() => match notice {
                Some(notice) => {
                    if let Some(conversation) = woken(notice.get_channel_name()) {
                        wakes.wake(conversation);
                    }
                }
                None => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            },
            count = interest.recv_many(&mut changes, CHANNELS_AT_ONCE) => {
                if count == 0 {
                    return Ok(());
                }
                let (begun, ended) = latest(changes.drain(..));
                // Without a channel, UNSUBSCRIBE would mean all of them.
                if !ended.is_empty() {
                    in_time(limits, sink.unsubscribe(channels(keys, &ended))).await?;
                }
                if !begun.is_empty() {
                    in_time(limits, sink.subscribe(channels(keys, &begun))).await?;
                }
                // What was published before the subscription was heard by nobody.
                for conversation in begun {
                    wakes.wake(conversation);
                }
            }
            _ = ping.tick() => {
                in_time(limits, sink.ping::<redis::Value>()).await?;
            }
        }
    }
}

/// The channels that are watched after these changes, and those that are not any more. The last change of a channel
/// counts.
fn latest(changes: impl Iterator<Item = Interest>) -> (Vec<ConversationRef>, Vec<ConversationRef>) {
    let mut watched = HashMap::new();
    for change in changes {
        match change {
            Interest::Begins(conversation) => watched.insert(conversation, true),
            Interest::Ends(conversation) => watched.insert(conversation, false),
        };
    }
    let those = |begun: bool| watched.iter().filter(|(_, is)| **is == begun).map(|(one, _)| *one).collect();
    (those(true), those(false))
}

fn channels(keys: Keys, conversations: &[ConversationRef]) -> Vec<String> {
    conversations.iter().map(|conversation| keys.wake(*conversation)).collect()
}

/// An answer of the server, if it comes in time.
async fn in_time<T>(
    limits: ConnectionLimits,
    answer: impl Future<Output = RedisResult<T>>,
) -> RedisResult<T> {
    timeout(limits.response, answer).await.map_err(std::io::Error::from)?
}
