//! Sums up repeated refusals of strangers, so that a flood of them is not a flood of log lines and spans.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::code::Code;
use crate::domain::ids::WorkItemId;
use crate::telemetry::names;

/// Of the same refusals within this time, only the first has a log line and a span of its own.
const WINDOW: Duration = Duration::from_secs(10);
/// Interval of the check for windows that have ended.
const CHECK: Duration = Duration::from_secs(1);
/// Maximum number of windows. Further clients share one window for each code.
const MAX_WINDOWS: usize = 256;

/// Which refusals are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Repeatable {
    /// The client. `None`: one of many.
    pub(super) client: Option<IpAddr>,
    pub(super) code: Code,
    /// The work item of an authentic token.
    pub(super) work_item: Option<WorkItemId>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    began: Instant,
    repeated: u64,
}

/// The current windows.
#[derive(Debug, Default)]
pub struct RepeatedRefusals(Mutex<HashMap<Repeatable, Window>>);

impl RepeatedRefusals {
    /// Counts a refusal. Returns whether it is the first in its window.
    pub(super) fn is_first(&self, refusal: Repeatable) -> bool {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = windows.len() < MAX_WINDOWS || windows.contains_key(&refusal);
        let refusal =
            if fits { refusal } else { Repeatable { client: None, work_item: None, code: refusal.code } };
        match windows.entry(refusal) {
            Entry::Vacant(new) => {
                new.insert(Window { began: Instant::now(), repeated: 0 });
                true
            }
            Entry::Occupied(mut window) => {
                window.get_mut().repeated += 1;
                false
            }
        }
    }

    /// Removes the windows that began before `began`. Returns those with repeated refusals.
    fn take(&self, began: Instant) -> Vec<(Repeatable, Window)> {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        windows
            .extract_if(|_, window| window.began <= began)
            .filter(|(_, window)| window.repeated > 0)
            .collect()
    }

    fn log(&self, began: Instant) {
        for (Repeatable { client, code, work_item }, window) in self.take(began) {
            tracing::info!(
                name: "request.repeated",
                {
                { names::HTTP_RESPONSE_STATUS_CODE } = code.status().as_u16(),
                { names::CODE } = code.as_str(),
                { names::REPEATED } = window.repeated,
                { names::CLIENT_ADDRESS } = client.map(tracing::field::display),
                { names::WORK_ITEM_ID } = work_item.map(tracing::field::display),
                },
                "{} {} refused {} more times in {} s",
                code.status().as_u16(),
                code.as_str(),
                window.repeated,
                window.began.elapsed().as_secs()
            );
        }
    }

    /// Logs one line for each window that has ended and had repeated refusals. Never returns.
    pub async fn keep_logging(&self) {
        loop {
            sleep(CHECK).await;
            if let Some(began) = Instant::now().checked_sub(WINDOW) {
                self.log(began);
            }
        }
    }

    /// Ends all windows, before the process ends.
    pub fn log_all(&self) {
        self.log(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn refusal(client: u32) -> Repeatable {
        let client = Some(IpAddr::V4(Ipv4Addr::from_bits(client)));
        Repeatable { client, code: Code::CallbackTokenInvalid, work_item: None }
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_first_refusal_in_a_window_has_a_line_of_its_own() {
        let repeats = RepeatedRefusals::default();
        assert!(repeats.is_first(refusal(1)) && repeats.is_first(refusal(2)));
        assert!(!repeats.is_first(refusal(1)) && !repeats.is_first(refusal(1)));
        let began = Instant::now();
        tokio::time::advance(WINDOW).await;
        let ended = repeats.take(began);
        assert_eq!(
            ended.iter().map(|(of, window)| (*of, window.repeated)).collect::<Vec<_>>(),
            [(refusal(1), 2)]
        );
        assert!(repeats.is_first(refusal(1)), "a new window");
    }

    #[tokio::test]
    async fn number_of_windows_is_bounded() {
        let repeats = RepeatedRefusals::default();
        let first = (0..2000).filter(|client| repeats.is_first(refusal(*client))).count();
        assert_eq!(first, MAX_WINDOWS + 1);
        let repeated: u64 = repeats.take(Instant::now()).iter().map(|(_, window)| window.repeated).sum();
        assert_eq!(repeated, 2000 - 1 - MAX_WINDOWS as u64);
    }
}
