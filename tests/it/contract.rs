//! The guarantees of [`callback_ingress::store::Store`], by number, on every store.
//!
//! | guarantee | tests |
//! |---|---|
//! | 1 atomic steps, 5 acknowledged results are stored, 6 release, 7 order and bytes | `release` |
//! | 2 a refusal changes nothing | `refusals` |
//! | 3 first settlement wins | `settlement`, and under load `races` |
//! | 4 the same token again | `replay` |
//! | 8 deadlines | `deadlines` |
//! | 9 idempotent issue | `issue` |
//! | 10 limits | `limits` |
//! | 11 the end | `ending` |
//! | 12 notifications, and reading | `reading` |
//! | 13 totals | `totals` |
//! | 14 cancelling a turn, and reasons | `turns` |
//! | 15 heartbeats and progress | `heartbeats` |
//! | 16 waiting conversations | `waiting` |

mod deadlines;
mod ending;
mod heartbeats;
mod issue;
mod limits;
mod reading;
mod refusals;
mod release;
mod replay;
mod settlement;
mod totals;
mod turns;
mod waiting;
