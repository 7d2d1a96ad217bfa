//! Summarizes repeated refusals, such as those of unauthenticated clients, so that a flood of requests does not flood
//! the log and the traces.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::code::{CLIENT_CLOSED_REQUEST, Code};
use super::rate_limit::network;
use crate::domain::token::{Claims, TokenFingerprint};
use crate::telemetry::names;

/// Duration of a window. In a window, only the first refusal with a given key has its own log line and span.
const WINDOW: Duration = Duration::from_secs(10);
/// Interval at which ended windows are logged.
const LOG_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of windows. Beyond it, all new refusals with the same code share one window.
const MAX_WINDOWS: usize = 256;
/// Maximum number of windows for one client. Beyond it, all its new refusals with the same code share one window.
const MAX_CLIENT_WINDOWS: usize = 16;

/// The key of a window. Refusals with equal keys are summarized together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RefusalKey {
    /// The client, or its IPv6 network. `None`: all clients beyond [`MAX_WINDOWS`] share the window.
    pub(super) client: Option<IpAddr>,
    /// `None`: the client disconnected.
    pub(super) code: Option<Code>,
    /// `None`: the request has no authentic token, or the window is shared.
    pub(super) token: Option<(Claims, TokenFingerprint)>,
}

#[derive(Clone, Copy, Debug)]
struct RefusalWindow {
    began: Instant,
    repeated: u64,
}

/// The current windows, with the number of repeated refusals in each.
#[derive(Debug)]
pub struct RefusalSummaries {
    ipv6_prefix: u64,
    windows: Mutex<HashMap<RefusalKey, RefusalWindow>>,
}

impl RefusalSummaries {
    /// IPv6 addresses with the same first `ipv6_prefix` bits count as one client, which usually controls a whole
    /// network.
    pub fn new(ipv6_prefix: u64) -> Self {
        Self { ipv6_prefix, windows: Mutex::default() }
    }

    /// Counts a refusal. Returns whether it is the first in its window.
    pub(super) fn is_first(&self, mut refusal: RefusalKey) -> bool {
        refusal.client = refusal.client.map(|client| network(client, self.ipv6_prefix));
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let of_client = || windows.keys().filter(|known| known.client == refusal.client).count();
        if !windows.contains_key(&refusal) && of_client() >= MAX_CLIENT_WINDOWS {
            refusal.token = None;
        }
        if !windows.contains_key(&refusal) && windows.len() >= MAX_WINDOWS {
            refusal = RefusalKey { client: None, token: None, code: refusal.code };
        }
        match windows.entry(refusal) {
            Entry::Vacant(new) => {
                new.insert(RefusalWindow { began: Instant::now(), repeated: 0 });
                true
            }
            Entry::Occupied(mut window) => {
                window.get_mut().repeated += 1;
                false
            }
        }
    }

    /// Removes the windows that began at `began` or earlier. Returns those with repeated refusals.
    fn take_started_by(&self, began: Instant) -> Vec<(RefusalKey, RefusalWindow)> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows
            .extract_if(|_, window| window.began <= began)
            .filter(|(_, window)| window.repeated > 0)
            .collect()
    }

    fn log(&self, began: Instant) {
        for (RefusalKey { client, code, token }, window) in self.take_started_by(began) {
            let status = code.map_or(CLIENT_CLOSED_REQUEST, |code| code.status().as_u16());
            let code = code.map_or("", Code::as_str);
            let apart = if code.is_empty() { "" } else { " " };
            tracing::info!(
                name: "request.repeated",
                {
                    { names::HTTP_RESPONSE_STATUS_CODE } = status,
                    { names::CODE } = code,
                    { names::REPEATED } = window.repeated,
                    { names::CLIENT_ADDRESS } = client.map(display),
                    { names::CONVERSATION_REFERENCE } = token.map(|(claims, _)| display(claims.conversation)),
                    { names::WORK_ITEM_ID } = token.map(|(claims, _)| display(claims.work_item)),
                    { names::WORK_ITEM_SEQUENCE } = token.map(|(claims, _)| claims.sequence.get()),
                    { names::TOKEN_FINGERPRINT } = token.map(|(_, fingerprint)| display(fingerprint)),
                },
                "{status}{apart}{code} repeated {}x in {} s",
                window.repeated,
                window.began.elapsed().as_secs()
            );
        }
    }

    /// Logs one line for each window that has ended and had repeated refusals. Never returns.
    pub async fn log_periodically(&self) {
        loop {
            sleep(LOG_INTERVAL).await;
            if let Some(began) = Instant::now().checked_sub(WINDOW) {
                self.log(began);
            }
        }
    }

    /// Logs all windows, before the process ends.
    pub fn log_all(&self) {
        self.log(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use uuid::Uuid;

    use super::*;
    use crate::domain::ids::{ConversationId, Sequence, WorkItemId};
    use crate::domain::time::Timestamp;
    use crate::domain::work_item::Kind;

    fn refusal(client: u32) -> RefusalKey {
        let client = Some(IpAddr::V4(Ipv4Addr::from_bits(client)));
        RefusalKey { client, code: Some(Code::CallbackTokenInvalid), token: None }
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_first_refusal_in_a_window_is_logged_individually() {
        let summaries = RefusalSummaries::new(64);
        assert!(summaries.is_first(refusal(1)) && summaries.is_first(refusal(2)));
        assert!(!summaries.is_first(refusal(1)) && !summaries.is_first(refusal(1)));
        let began = Instant::now();
        tokio::time::advance(WINDOW).await;
        let ended = summaries.take_started_by(began);
        assert_eq!(
            ended.iter().map(|(of, window)| (*of, window.repeated)).collect::<Vec<_>>(),
            [(refusal(1), 2)]
        );
        assert!(summaries.is_first(refusal(1)), "a new window");
    }

    #[tokio::test]
    async fn number_of_windows_is_bounded() {
        let summaries = RefusalSummaries::new(64);
        let first = (0..2000).filter(|client| summaries.is_first(refusal(*client))).count();
        assert_eq!(first, MAX_WINDOWS + 1);
        let repeated: u64 =
            summaries.take_started_by(Instant::now()).iter().map(|(_, window)| window.repeated).sum();
        assert_eq!(repeated, 2000 - 1 - MAX_WINDOWS as u64);
    }

    #[tokio::test]
    async fn windows_per_client_are_bounded() {
        let summaries = RefusalSummaries::new(64);
        let of = |host: u128, item: u128| {
            let client = Some(IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) + host)));
            let claims = Claims {
                conversation: ConversationId::parse("call-1").unwrap().reference(),
                work_item: WorkItemId::from_uuid(Uuid::from_u128(item)),
                sequence: Sequence::new(1),
                kind: Kind::Tool,
                expires_at: Timestamp::from_millis(1),
            };
            let token = (item > 0).then_some((claims, TokenFingerprint::of("")));
            RefusalKey { client, code: Some(Code::RateLimited), token }
        };
        assert_eq!((1..2000).filter(|host| summaries.is_first(of(*host, 0))).count(), 1);
        let first = (1..2000).filter(|item| summaries.is_first(of(1, *item))).count();
        assert_eq!(first, MAX_CLIENT_WINDOWS - 1);
        assert!(summaries.is_first(refusal(1)), "another client");
    }
}
