//! Permitted losses of a failover: writes that had not reached the promoted replica.

use super::{Case, Rule};
use crate::record::{Action, Operation, Time};

/// Longest replication delay of a connected replica on a busy machine.
const REPLICATED_WITHIN: Time = 500_000;

impl Case<'_> {
    /// Intervals of writes that failovers may have lost.
    fn losing(&self) -> impl Iterator<Item = (Time, Time)> {
        self.history.outages.iter().filter_map(|outage| Some((outage.from, outage.loses_until?)))
    }

    /// Whether data that was read in this interval may be lost although writes wait for replicas. Reads do not wait, so
    /// the data may have been only on the lost primary. A later request that was answered before the loss rules it out,
    /// because a replica then has all earlier writes.
    pub(super) fn may_be_forgotten(&self, from: Time, until: Time) -> bool {
        let in_danger = |(began, over): &(Time, Time)| from <= *over && until + REPLICATED_WITHIN >= *began;
        self.losing().filter(in_danger).any(|(began, _)| {
            let waits = |operation: &&Operation| match &operation.action {
                Action::Open
                | Action::Issue { .. }
                | Action::Beat { .. }
                | Action::Cancel { .. }
                | Action::CancelTurn { .. }
                | Action::End => true,
                Action::Post(post) => post.says.is_a_result(),
                _ => false,
            };
            let mut answers = self.operations().filter(waits).flat_map(Operation::answers);
            !answers.any(|(attempt, _)| attempt.invoked > until && attempt.returned < began)
        })
    }

    /// Counts a missing result that was acknowledged at this time.
    pub(super) fn lose(&mut self, acknowledged: Time) {
        self.verdict.lost += 1;
        if self.losing().next().is_none() {
            return;
        }
        let began = self.losing().filter(|(_, over)| acknowledged <= *over).map(|(began, _)| began).min();
        let before = began.map(|began| began.saturating_sub(acknowledged));
        self.verdict.lost_before.extend(before.map(|before| before / 1_000));
        if before.is_none_or(|before| before > REPLICATED_WITHIN) {
            let what = format!("lost, and acknowledged {before:?} us before the failover that can be why");
            self.violated(Rule::Replicated, what);
        }
    }
}
