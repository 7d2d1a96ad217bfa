//! The service's promises, told as stories, on every kind of deployment.

mod documents;
mod gap;
mod memory;
mod order;
mod race;

use tokio::sync::{Mutex, MutexGuard};

/// Stories are long and loud: one at a time, so that none is measured by another's noise.
async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}
