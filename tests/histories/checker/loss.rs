//! What a failover may lose: what had not reached the replica that took over.

use super::{Case, Rule};
use crate::record::{Action, Operation, Time};

/// Within which a replica that is connected has what its master wrote, on a machine that also runs everything else.
const REPLICATED_WITHIN: Time = 500_000;

impl Case<'_> {
    /// Failovers: from when on something may have been written that is lost, until when.
    fn losing(&self) -> impl Iterator<Item = (Time, Time)> {
        self.history.outages.iter().filter_map(|outage| Some((outage.from, outage.loses_until?)))
    }

    /// Whether what somebody saw in this interval may be gone, although results wait for replicas: who reads does not
    /// wait, so it may have been seen on a master that was lost then. Not if a request of later on was answered before
    /// that: a replica has whatever was there before it.
    pub(super) fn may_be_forgotten(&self, from: Time, until: Time) -> bool {
        let in_danger = |(began, over): &(Time, Time)| from <= *over && until + REPLICATED_WITHIN >= *began;
        self.losing().filter(in_danger).any(|(began, _)| {
            let waits = |operation: &&Operation| match &operation.action {
                Action::Open | Action::Issue { .. } | Action::Cancel { .. } | Action::End => true,
                Action::Post(post) => post.says.is_a_result(),
                _ => false,
            };
            let mut answers = self.operations().filter(waits).flat_map(Operation::answers);
            !answers.any(|(attempt, _)| attempt.invoked > until && attempt.returned < began)
        })
    }

    /// Counts a result that is nowhere, and was acknowledged at this time.
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
