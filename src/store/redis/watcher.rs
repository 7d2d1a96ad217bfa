//! One connection that listens for the channels watched in this process, however many there are.
//!
//! A notice may be lost with the connection: whoever reads a channel also looks again now and then, and everybody is
//! woken when the connection is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use redis::RedisResult;
use redis::aio::PubSubSink;
use tokio::sync::mpsc;
use tokio::time::{interval, sleep, timeout};

use super::keys::{Keys, woken};
use super::link::Timeouts;
use super::nodes::Nodes;
use crate::store::wakes::{Interest, Wakes};

/// How long after a failure the next connection is tried.
const RETRY: Duration = Duration::from_millis(250);
/// How often a silent connection is asked whether it lives.
const PING: Duration = Duration::from_secs(5);

/// Listens until nobody can be interested any more.
pub(super) async fn listen(
    nodes: Arc<Nodes>,
    timeouts: Timeouts,
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
            match listen_once(&nodes, timeouts, keys, &wakes, &mut interest, &mut told).await {
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
    timeouts: Timeouts,
    keys: Keys,
    wakes: &Wakes,
    interest: &mut mpsc::UnboundedReceiver<Interest>,
    told: &mut bool,
) -> RedisResult<()> {
    let connection = nodes.listen(timeouts.connect).await?;
    *told = false;
    let (mut sink, mut notices) = connection.split();
    forget(interest);
    for conversation in wakes.watched() {
        subscribe(&mut sink, keys.wake(conversation), timeouts).await?;
    }
    wakes.wake_all();
    let mut ping = interval(PING);
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
            change = interest.recv() => match change {
                Some(Interest::Begins(conversation)) => {
                    subscribe(&mut sink, keys.wake(conversation), timeouts).await?;
                    // What was published before the subscription was heard by nobody.
                    wakes.wake(conversation);
                }
                Some(Interest::Ends(conversation)) => {
                    timeout(timeouts.response, sink.unsubscribe(keys.wake(conversation)))
                        .await
                        .map_err(std::io::Error::from)??;
                }
                None => return Ok(()),
            },
            _ = ping.tick() => {
                timeout(timeouts.response, sink.ping::<redis::Value>()).await.map_err(std::io::Error::from)??;
            }
        }
    }
}

async fn subscribe(sink: &mut PubSubSink, channel: String, timeouts: Timeouts) -> RedisResult<()> {
    timeout(timeouts.response, sink.subscribe(channel)).await.map_err(std::io::Error::from)?
}
