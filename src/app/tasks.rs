//! The tasks of the service. It is an error if one of them ends before the service stops.

use std::collections::HashMap;
use std::future::Future;

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use thiserror::Error;

/// A task ended before the service stopped.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the task \"{name}\" {how} before the service stopped")]
pub struct TaskEnded {
    name: &'static str,
    how: &'static str,
}

/// Supervised tasks. They are aborted on drop.
pub(super) struct Tasks {
    set: JoinSet<()>,
    names: HashMap<Id, &'static str>,
    stop: CancellationToken,
}

impl Tasks {
    /// An empty set of tasks. All of them end when `stop` is cancelled.
    pub(super) fn new(stop: CancellationToken) -> Self {
        Self { set: JoinSet::new(), names: HashMap::new(), stop }
    }

    /// Runs a task that ends by itself when `stop` is cancelled.
    pub(super) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.set.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Runs a task until `stop` is cancelled.
    pub(super) fn spawn_until_stop(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let stop = self.stop.clone();
        self.spawn(name, async move {
            stop.run_until_cancelled(task).await;
        });
    }

    /// Waits until a task ends. Before the service stops, that is an error.
    pub(super) async fn ended(&mut self) -> TaskEnded {
        let (id, how) = match self.set.join_next_with_id().await {
            Some(Ok((id, ()))) => (Some(id), "returned"),
            Some(Err(error)) => (Some(error.id()), cause(&error)),
            None => (None, "did not start"),
        };
        let name = id.and_then(|id| self.names.get(&id)).copied().unwrap_or("unknown");
        TaskEnded { name, how }
    }

    /// Waits until all tasks have ended. Logs those that panic.
    pub(super) async fn all_ended(&mut self) {
        while let Some(ended) = self.set.join_next_with_id().await {
            if let Err(error) = ended {
                let name = self.names.get(&error.id()).copied().unwrap_or("unknown");
                tracing::error!(name: "task.failed", "the task \"{name}\" {}", cause(&error));
            }
        }
    }
}

/// Omits the message of a panic, which may contain secrets. The panic hook has logged its location.
fn cause(error: &JoinError) -> &'static str {
    if error.is_panic() { "panicked" } else { "was cancelled" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ended_task_is_named_without_its_panic_message() {
        let mut tasks = Tasks::new(CancellationToken::new());
        tasks.spawn_until_stop("listener", std::future::pending());
        tasks.spawn("sweeper", async { panic!("cbt_AQJrMQ") });
        assert_eq!(
            tasks.ended().await.to_string(),
            "the task \"sweeper\" panicked before the service stopped"
        );
        tasks.spawn("certificate watcher", async {});
        assert_eq!(
            tasks.ended().await.to_string(),
            "the task \"certificate watcher\" returned before the service stopped"
        );
    }

    #[tokio::test]
    async fn all_tasks_end_when_the_service_stops() {
        let stop = CancellationToken::new();
        let mut tasks = Tasks::new(stop.clone());
        tasks.spawn_until_stop("sweeper", std::future::pending());
        tasks.spawn("listener", stop.clone().cancelled_owned());
        stop.cancel();
        tasks.all_ended().await;
    }
}
