//! A thread that waits for a disk, so that nobody else has to: one that hangs, such as a share whose server is gone, holds it for as long
//! as it likes, and those who asked go on after their time.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use tokio::{
    sync::{Semaphore, oneshot},
    time::timeout,
};

/// What waits for the thread, at most. Others wait for a place, in the same time.
const WAITING: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// The thread, which ends with the last of its clones and of what it [keeps](Waiter::keep). Jobs are done in their order.
#[derive(Clone, Debug)]
pub(super) struct Waiter {
    jobs: mpsc::Sender<Job>,
    places: Arc<Semaphore>,
}

impl Waiter {
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, waiting) = mpsc::channel::<Job>();
        thread::Builder::new().name("archive".to_owned()).spawn(move || waiting.into_iter().for_each(|job| job()))?;
        Ok(Self { jobs, places: Arc::new(Semaphore::new(WAITING)) })
    }

    /// Has something done, within some time. What was begun by then goes on, and nobody hears of it; the rest is not done.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        at_most: Duration,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let asked = async {
            let place = Arc::clone(&self.places).acquire_owned().await.map_err(io::Error::other)?;
            let (told, telling) = oneshot::channel();
            let job = move || {
                if !told.is_closed() {
                    // Who waited may have gone on.
                    let _ = told.send(work());
                }
                drop(place);
            };
            self.jobs.send(Box::new(job)).map_err(|_| ended())?;
            telling.await.unwrap_or_else(|_| Err(ended()))
        };
        timeout(at_most, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Has something dropped by the thread, whoever has it then: that may wait for the disk, too.
    pub(super) fn keep<T: Send + 'static>(&self, value: T) -> Kept<T> {
        Kept { value: Some(value), jobs: self.jobs.clone() }
    }
}

fn ended() -> io::Error {
    io::Error::other("the thread that waits for the disk has ended")
}

/// Something that the thread alone uses and drops.
#[derive(Debug)]
pub(super) struct Kept<T: Send + 'static> {
    value: Option<T>,
    jobs: mpsc::Sender<Job>,
}

impl<T: Send + 'static> Kept<T> {
    /// To be used in a job.
    pub(super) fn with<R>(&mut self, work: impl FnOnce(&mut T) -> io::Result<R>) -> io::Result<R> {
        self.value.as_mut().ok_or_else(ended).and_then(work)
    }

    /// To be used up in a job.
    pub(super) fn take(mut self) -> io::Result<T> {
        self.value.take().ok_or_else(ended)
    }
}

impl<T: Send + 'static> Drop for Kept<T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            // Without the thread it is dropped here.
            let _ = self.jobs.send(Box::new(move || drop(value)));
        }
    }
}
