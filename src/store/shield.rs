//! Completes calls even if their caller is dropped, for example because the client disconnects.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// Tracks the calls whose callers were dropped. Clones share the calls.
#[derive(Clone, Debug, Default)]
pub struct ShieldedCalls(TaskTracker);

impl ShieldedCalls {
    /// Completes the call in a separate task if its caller is dropped.
    pub fn shield<F>(&self, call: F) -> impl Future<Output = F::Output> + Send + use<F>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        Shield { call: Some(Box::pin(call)), tasks: self.0.clone() }
    }

    /// Waits until the calls whose callers were dropped have been completed.
    pub async fn completed(&self) {
        self.0.close();
        self.0.wait().await;
    }
}

/// The future that [`ShieldedCalls::shield`] returns.
struct Shield<F: Future + Send + 'static>
where
    F::Output: Send,
{
    call: Option<Pin<Box<F>>>,
    tasks: TaskTracker,
}

impl<F: Future + Send + 'static> Future for Shield<F>
where
    F::Output: Send,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // Removed while it is polled, because a future that panicked must not be polled again.
        let Some(mut call) = self.call.take() else { return Poll::Pending };
        let polled = call.as_mut().poll(cx);
        if polled.is_pending() {
            self.call = Some(call);
        }
        polled
    }
}

impl<F: Future + Send + 'static> Drop for Shield<F>
where
    F::Output: Send,
{
    fn drop(&mut self) {
        // The runtime is missing only while the process exits.
        if let (Some(call), Ok(runtime)) = (self.call.take(), Handle::try_current()) {
            self.tasks.spawn_on(async move { drop(call.await) }, &runtime);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn call_is_completed_when_its_caller_is_dropped() {
        let calls = ShieldedCalls::default();
        let (go, wait) = oneshot::channel::<()>();
        let (done, mut completed) = oneshot::channel();
        let mut call = Box::pin(calls.shield(async move {
            wait.await.unwrap();
            done.send(()).unwrap();
        }));
        assert!(call.as_mut().now_or_never().is_none(), "the call waits");
        drop(call);
        assert!(calls.completed().now_or_never().is_none(), "the call is not completed yet");
        go.send(()).unwrap();
        calls.completed().await;
        completed.try_recv().unwrap();
    }

    #[tokio::test]
    async fn panicked_call_is_not_polled_again() {
        let calls = ShieldedCalls::default();
        let call = calls.shield(async { panic!("a bug") });
        let caught = std::panic::AssertUnwindSafe(call).catch_unwind().await;
        assert!(caught.is_err());
        assert_eq!(calls.shield(async { 7 }).await, 7);
        calls.completed().await;
    }
}
