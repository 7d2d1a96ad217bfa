//! Longer scenarios on every kind of deployment.

mod documents;
mod gap;
mod memory;
mod order;
mod race;

use tokio::sync::{Mutex, MutexGuard};

/// Scenarios run one at a time, because they measure time and memory.
async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}
