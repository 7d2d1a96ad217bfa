//! Which results are posted, and in which order.

use serde::{Deserialize, Serialize};

/// The issued items, and how their results are posted.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Plan {
    pub(crate) conversations: usize,
    /// Number of items per conversation.
    pub(crate) items: usize,
    pub(crate) order: Order,
    /// Size of each result.
    pub(crate) bytes: usize,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) enum Order {
    /// In the order of issue.
    AsIssued,
    /// The last item of each conversation first: all are held, and the first releases them.
    Reversed,
    /// In the order of issue; 30 % of all requests repeat an earlier one.
    Repeated,
    /// In the order of issue, with one character of each token's signature changed.
    Forged,
}

/// Number of conversations that take turns, so that no two items of one conversation are in flight at once.
pub(crate) const BLOCK: usize = 512;
/// Default number of items per conversation.
pub(crate) const ITEMS: usize = 8;

const REPEATED_SHARE: f64 = 0.3;

/// One post: an item as (conversation, index in it), and whether it was posted before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) conversation: usize,
    pub(crate) item: usize,
    pub(crate) repeated: bool,
}

impl Plan {
    /// At least this many items, in conversations of `ITEMS`.
    pub(crate) fn of(requests: usize, order: Order, bytes: usize) -> Self {
        Self { conversations: requests.div_ceil(ITEMS), items: ITEMS, order, bytes }
    }

    pub(crate) fn status(&self, step: Step) -> u16 {
        match self.order {
            Order::Forged => 401,
            Order::Repeated if step.repeated => 200,
            Order::AsIssued | Order::Reversed | Order::Repeated => 202,
        }
    }

    /// The items in the order of issue: in blocks of conversations that take turns.
    pub(crate) fn issued(&self) -> Vec<Step> {
        self.in_blocks(false)
    }

    /// The posts in order.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let steps = self.in_blocks(self.order == Order::Reversed);
        if self.order != Order::Repeated {
            return steps;
        }
        let distance = BLOCK.min(steps.len() / 2);
        let (mut with_repeats, mut due) = (Vec::new(), 0.0);
        for (at, &step) in steps.iter().enumerate() {
            with_repeats.push(step);
            due += REPEATED_SHARE / (1.0 - REPEATED_SHARE);
            while due >= 1.0 {
                due -= 1.0;
                if let Some(earlier) = at.checked_sub(distance) {
                    with_repeats.push(Step { repeated: true, ..steps[earlier] });
                }
            }
        }
        with_repeats
    }

    fn in_blocks(&self, reversed: bool) -> Vec<Step> {
        let mut steps = Vec::with_capacity(self.conversations * self.items);
        for first in (0..self.conversations).step_by(BLOCK) {
            for index in 0..self.items {
                let item = if reversed { self.items - 1 - index } else { index };
                let block = first..self.conversations.min(first + BLOCK);
                steps.extend(block.map(|conversation| Step { conversation, item, repeated: false }));
            }
        }
        steps
    }
}
