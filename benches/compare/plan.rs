//! Which results are posted, and in which order.

use serde::{Deserialize, Serialize};

/// Issued items and how they are answered.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Plan {
    pub(crate) conversations: usize,
    /// Items of each conversation.
    pub(crate) items: usize,
    pub(crate) order: Order,
    /// Size of each result.
    pub(crate) bytes: usize,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) enum Order {
    /// As issued.
    AsIssued,
    /// The last item of each conversation first: all are held, and the first releases them.
    Reversed,
    /// As issued; of all requests, 30 % are the repetition of an earlier one.
    Repeated,
    /// As issued, with a character of each token's signature changed.
    Forged,
}

/// Conversations that are posted to in turn. So many lie between two items of the same conversation, so that these
/// are not under way together.
pub(crate) const BLOCK: usize = 512;
/// Items of a conversation, where nothing else is asked for.
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
    /// At least so many items, in conversations of `ITEMS`.
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

    /// The items in the order in which they are issued: in turn by conversation, in blocks.
    pub(crate) fn issued(&self) -> Vec<Step> {
        self.in_blocks(false)
    }

    /// The posts in their order.
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
