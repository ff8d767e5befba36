//! Threads that check objects: regular expressions and CEL are compiled for it, and neither pods nor streams must wait for that.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout_at};
use tracing::error;

use crate::https::Deadline;

/// Objects that are checked at a time.
const AT_A_TIME: usize = 2;
/// Objects that may wait for it.
const WAITING: usize = 8;
/// Kept of a request's time for the answer.
const MARGIN: Duration = Duration::from_millis(200);

/// The threads; cheap to clone.
#[derive(Clone, Debug)]
pub struct Workers {
    admitted: Arc<Semaphore>,
    at_work: Arc<Semaphore>,
}

impl Default for Workers {
    fn default() -> Self {
        Self { admitted: Arc::new(Semaphore::new(AT_A_TIME + WAITING)), at_work: Arc::new(Semaphore::new(AT_A_TIME)) }
    }
}

/// Why something was not done.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Busy {
    #[error("fetchr is checking {AT_A_TIME} objects and {WAITING} more wait for it; try again")]
    Full,
    #[error("fetchr could not check the object in time; try again, and if that does not help, write fewer expressions in it")]
    Slow,
    #[error("fetchr failed to check the object; its log says why")]
    Failed,
}

impl Busy {
    /// The reason as a label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Slow => "slow",
            Self::Failed => "failed",
        }
    }
}

impl Workers {
    /// Does some work in time. Work that takes longer keeps its place until it ends, so that there is never more of it at a time.
    pub(super) async fn run<T, W>(&self, Deadline(until): Deadline, work: W) -> Result<T, Busy>
    where
        T: Send + 'static,
        W: FnOnce() -> T + Send + 'static,
    {
        let until = until - MARGIN;
        let admitted = self.admitted.clone().try_acquire_owned().map_err(|_| Busy::Full)?;
        let place = timeout_at(until, self.at_work.clone().acquire_owned()).await.map_err(|_| Busy::Slow)?;
        let working = spawn_blocking(move || {
            let _held = (admitted, place);
            work()
        });
        timeout_at(until, working).await.map_err(|_| Busy::Slow)?.map_err(|error| {
            error!(%error, "A check broke off.");
            Busy::Failed
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn work_that_hangs_makes_others_wait_in_time_and_in_number() {
        let workers = Workers::default();
        let soon = || Deadline(tokio::time::Instant::now() + MARGIN + Duration::from_millis(100));
        let (release, held): (Vec<_>, Vec<_>) = (0..AT_A_TIME).map(|_| mpsc::channel::<()>()).unzip();
        for held in held {
            let hanging = workers.run(soon(), move || held.recv().is_err());
            assert_eq!(hanging.await, Err(Busy::Slow));
        }
        let waiting: Vec<_> = (0..WAITING).map(|_| workers.run(soon(), || ())).collect();
        let (waited, ()) = tokio::join!(futures::future::join_all(waiting), async {
            tokio::task::yield_now().await;
            assert_eq!(workers.run(soon(), || ()).await, Err(Busy::Full));
        });
        assert!(waited.iter().all(|one| *one == Err(Busy::Slow)), "{waited:?}");
        drop(release);
        let later = Deadline(tokio::time::Instant::now() + Duration::from_secs(30));
        assert_eq!(workers.run(later, || 7).await, Ok(7));
    }
}
