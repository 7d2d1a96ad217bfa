//! Totals over many histories.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::record::{Action, Operation};
use crate::run::Done;

/// The totals.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) histories: usize,
    /// Attempts at callbacks.
    pub(crate) callbacks: usize,
    pub(crate) faults: usize,
    /// Accepted results.
    pub(crate) acknowledged: usize,
    /// Recognised repetitions.
    replayed: usize,
    /// Callbacks without any reply.
    unknown: usize,
    pub(crate) violations: usize,
    pub(crate) lost: usize,
    lost_before: Vec<u64>,
    codes: BTreeMap<String, usize>,
    lateness: Vec<u64>,
}

impl Figures {
    pub(crate) fn add(&mut self, done: &Done, violations: usize) {
        self.histories += done.histories.len();
        self.faults += done.outages.len();
        self.violations += violations;
        self.lost += done.verdict.lost;
        self.lost_before.extend(&done.verdict.lost_before);
        self.lateness.extend(&done.verdict.lateness);
        let conversations = done.histories.iter().flat_map(|history| &history.conversations);
        for operation in conversations.flat_map(|conversation| &conversation.operations) {
            if matches!(operation.action, Action::Post(_) | Action::Forged { .. }) {
                self.add_callback(operation);
            }
        }
    }

    fn add_callback(&mut self, operation: &Operation) {
        self.callbacks += operation.attempts.len();
        self.unknown += usize::from(operation.answers().next().is_none());
        for attempt in &operation.attempts {
            match &attempt.reply {
                None => *self.codes.entry("no answer".to_owned()).or_default() += 1,
                Some(reply) if reply.status == 202 => self.acknowledged += 1,
                Some(reply) if reply.status == 200 => self.replayed += 1,
                Some(reply) => *self.codes.entry(reply.code().to_owned()).or_default() += 1,
            }
        }
    }

    pub(crate) fn join(&mut self, other: &Self) {
        self.histories += other.histories;
        self.callbacks += other.callbacks;
        self.faults += other.faults;
        self.acknowledged += other.acknowledged;
        self.replayed += other.replayed;
        self.unknown += other.unknown;
        self.violations += other.violations;
        self.lost += other.lost;
        self.lost_before.extend(&other.lost_before);
        self.lateness.extend(&other.lateness);
        for (code, count) in &other.codes {
            *self.codes.entry(code.clone()).or_default() += count;
        }
    }

    /// A summary of one paragraph.
    pub(crate) fn told(&self, name: &str) -> String {
        let mut late = self.lateness.clone();
        late.sort_unstable();
        let at = |percent: usize| late.get((late.len() * percent / 100).min(late.len().saturating_sub(1)));
        let (median, p99, worst) = (at(50), at(99), late.last());
        let number = |late: Option<&u64>| late.copied().unwrap_or_default();
        let mut text = format!(
            "{name}: {} histories, {} callbacks, {} faults, {} acknowledged, {} replayed, {} never answered, \
             {} violations, {} lost{}; {} timed out, late by {} ms (median), {} (p99), {} (worst)\n   ",
            self.histories,
            self.callbacks,
            self.faults,
            self.acknowledged,
            self.replayed,
            self.unknown,
            self.violations,
            self.lost,
            self.lost_before.iter().max().map(|age| format!(" (at most {age} ms old)")).unwrap_or_default(),
            late.len(),
            number(median),
            number(p99),
            number(worst),
        );
        for (code, count) in &self.codes {
            write!(text, " {code} {count}").unwrap();
        }
        text
    }
}
