//! The handshakes of a worker, one at a time. To compute an answer to a client's first message costs more than all else that the worker does
//! for a connection, so many of them at once would hold up every request. Only clients that have said all of that message take turns: one that
//! is silent costs nobody's.

use std::cell::Cell;

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::yield_now,
};

/// Handshakes that wait for their turn at a worker, at most.
const MAX_WAITING: usize = 512;

/// The turns at one worker.
pub(crate) struct Turns {
    turn: Semaphore,
    waiting: Cell<usize>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { turn: Semaphore::new(1), waiting: Cell::new(0) }
    }
}

impl Turns {
    /// Waits for a turn, which ends with what is returned. Between two turns all else that is ready is run, and what comes from sockets is
    /// looked at. Nothing if too many wait.
    pub(crate) async fn take(&self) -> Option<SemaphorePermit<'_>> {
        let _waiting = Waiting::begin(&self.waiting)?;
        let turn = self.turn.acquire().await.ok()?;
        yield_now().await;
        Some(turn)
    }
}

#[cfg(test)]
impl Turns {
    /// All who can wait.
    pub(super) fn fill(&self) -> Vec<impl Sized + '_> {
        std::iter::from_fn(|| Waiting::begin(&self.waiting)).collect()
    }
}

struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a Cell<usize>) -> Option<Self> {
        (waiting.get() < MAX_WAITING).then(|| {
            waiting.set(waiting.get() + 1);
            Self(waiting)
        })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use futures::future::{FutureExt as _, join_all};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixStream,
        task::{LocalSet, spawn_local},
    };

    use super::*;

    #[tokio::test]
    async fn sockets_are_served_between_two_turns() {
        const TURNS: usize = 100;
        let (turns, answered) = (Rc::new(Turns::default()), Rc::new(Cell::new(0)));
        let (mut client, mut server) = UnixStream::pair().unwrap();
        let asked = Rc::clone(&answered);
        LocalSet::new()
            .run_until(async {
                spawn_local(async move {
                    let mut byte = [0];
                    while server.read_exact(&mut byte).await.is_ok() && server.write_all(&byte).await.is_ok() {}
                });
                spawn_local(async move {
                    let mut byte = [0];
                    while client.write_all(&byte).await.is_ok() && client.read_exact(&mut byte).await.is_ok() {
                        asked.set(asked.get() + 1);
                    }
                });
                join_all((0..TURNS).map(|_| {
                    let turns = Rc::clone(&turns);
                    spawn_local(async move { drop(turns.take().await.expect("there is room")) })
                }))
                .await;
            })
            .await;
        assert!(answered.get() > TURNS / 4, "{} of {TURNS}", answered.get());
    }

    #[tokio::test]
    async fn one_has_a_turn_few_wait_and_the_rest_is_refused() {
        let turns = Turns::default();
        let turn = turns.take().await.unwrap();
        let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| Box::pin(turns.take())).collect();
        assert!(waiting.iter_mut().all(|waits| waits.as_mut().now_or_never().is_none()), "one at a time");
        assert!(turns.take().await.is_none());
        drop(waiting.pop());
        assert!(turns.take().now_or_never().is_none(), "whoever leaves makes room");
        drop(turn);
        assert!(waiting.remove(0).await.is_some());
    }
}
