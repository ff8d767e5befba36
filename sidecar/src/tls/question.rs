//! What an upstream under TLS speaks, asked once for all who need to know.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    error::ForwardError,
    upstream::{Endpoint, Protocol},
};

/// How long a failed question answers those who come after it. Longer, and it would answer the further tries of `retry` too, which
/// begin after 12 ms at the earliest.
const REMEMBERED: Duration = Duration::from_millis(10);

type Answer = Result<Protocol, Arc<ForwardError>>;

/// The questions to the servers of one upstream. Each has its own: one that is silent holds up nobody who asks another.
#[derive(Default)]
pub(crate) struct Questions(Arc<Mutex<HashMap<Endpoint, Question>>>);

enum Question {
    /// Somebody asks.
    Open(watch::Receiver<Option<Answer>>),
    /// It has failed, and when.
    Failed(Arc<ForwardError>, Instant),
}

impl Questions {
    /// The answer of a server. Who comes while it is asked waits for the same answer, until a deadline of its own; `ask` ends by a
    /// deadline of its own, too, and goes on if whoever began it leaves. An error without a cause: not before the deadline.
    pub(crate) async fn answer<F>(
        &self,
        endpoint: &Endpoint,
        deadline: Instant,
        ask: impl Fn() -> F,
    ) -> Result<Protocol, Option<ForwardError>>
    where
        F: Future<Output = Result<Protocol, ForwardError>> + 'static,
    {
        loop {
            let mut answer = match self.open(endpoint, &ask) {
                Ok(answer) => answer,
                Err(failed) => return Err(Some(failed.copy())),
            };
            let answered = timeout_at(deadline, answer.wait_for(Option::is_some)).await.map_err(|_| None)?;
            match answered.as_deref() {
                Ok(Some(Ok(protocol))) => return Ok(*protocol),
                Ok(Some(Err(failed))) => return Err(Some(failed.copy())),
                Ok(None) | Err(_) => {} // the worker that asked has ended
            }
        }
    }

    /// The question that is open, or a new one; an error if it has just failed.
    fn open<F>(&self, endpoint: &Endpoint, ask: impl Fn() -> F) -> Result<watch::Receiver<Option<Answer>>, Arc<ForwardError>>
    where
        F: Future<Output = Result<Protocol, ForwardError>> + 'static,
    {
        let mut questions = lock(&self.0);
        match questions.get(endpoint) {
            Some(Question::Open(answer)) if answer.has_changed().is_ok() => return Ok(answer.clone()),
            Some(Question::Failed(error, at)) if at.elapsed() < REMEMBERED => return Err(Arc::clone(error)),
            _ => {}
        }
        questions.retain(|_, question| question.counts());
        let (tell, answer) = watch::channel(None);
        questions.insert(endpoint.clone(), Question::Open(answer.clone()));
        drop(questions);
        let (asked, endpoint, questions) = (ask(), endpoint.clone(), Arc::clone(&self.0));
        tokio::task::spawn_local(async move {
            let answer = asked.await.map_err(Arc::new);
            let mut questions = lock(&questions);
            match &answer {
                Ok(_) => drop(questions.remove(&endpoint)),
                Err(error) => drop(questions.insert(endpoint, Question::Failed(Arc::clone(error), Instant::now()))),
            }
            drop(questions);
            tell.send_replace(Some(answer));
        });
        Ok(answer)
    }
}

impl Question {
    fn counts(&self) -> bool {
        match self {
            Self::Open(answer) => answer.has_changed().is_ok(),
            Self::Failed(_, at) => at.elapsed() < REMEMBERED,
        }
    }
}

fn lock(questions: &Mutex<HashMap<Endpoint, Question>>) -> MutexGuard<'_, HashMap<Endpoint, Question>> {
    questions.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, io, rc::Rc};

    use futures::future::{join, join_all};
    use tokio::{task::LocalSet, time::sleep};

    use super::*;

    /// Servers of which the port says what becomes of them: an answer after so many milliseconds, or a failure after one less.
    struct Asked {
        questions: Questions,
        times: Rc<Cell<u32>>,
    }

    impl Asked {
        fn new() -> Self {
            Self { questions: Questions::default(), times: Rc::default() }
        }

        async fn ask(&self, port: u16, limit: u64) -> Result<Protocol, Option<&'static str>> {
            let endpoint = Endpoint::of("10.0.0.1", port);
            let ask = || {
                self.times.set(self.times.get() + 1);
                let address = ([10, 0, 0, 1], port).into();
                async move {
                    sleep(Duration::from_millis(port.into())).await;
                    let refused = || ForwardError::Connect { address, source: io::ErrorKind::ConnectionRefused.into() };
                    if port.is_multiple_of(2) { Ok(Protocol::Http2) } else { Err(refused()) }
                }
            };
            let answered = self.questions.answer(&endpoint, Instant::now() + Duration::from_millis(limit), ask).await;
            answered.map_err(|error| error.map(|error| error.reason()))
        }
    }

    const REFUSED: Result<Protocol, Option<&str>> = Err(Some("connection_refused"));

    #[tokio::test(start_paused = true)]
    async fn all_wait_for_the_one_answer_and_each_no_longer_than_it_may() {
        let local = LocalSet::new();
        let asked = Asked::new();
        local
            .run_until(async {
                let start = Instant::now();
                let (patient, hasty) = join(join_all((0..50).map(|_| asked.ask(100, 500))), asked.ask(100, 50)).await;
                assert!(patient.iter().all(|answer| *answer == Ok(Protocol::Http2)) && hasty == Err(None));
                assert_eq!((asked.times.get(), start.elapsed()), (1, Duration::from_millis(100)));
                let failed = join_all((0..50).map(|_| asked.ask(101, 500))).await;
                assert!(failed.iter().all(|answer| *answer == REFUSED), "{failed:?}");
                assert_eq!(asked.times.get(), 2);
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn failure_is_remembered_for_a_moment_only() {
        let asked = Asked::new();
        LocalSet::new()
            .run_until(async {
                assert_eq!((asked.ask(1, 500).await, asked.ask(1, 500).await, asked.times.get()), (REFUSED, REFUSED, 1));
                sleep(REMEMBERED).await;
                assert_eq!((asked.ask(1, 500).await, asked.times.get()), (REFUSED, 2));
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn servers_do_not_wait_for_each_other_and_questions_outlive_who_began_them() {
        let asked = Asked::new();
        LocalSet::new()
            .run_until(async {
                let start = Instant::now();
                let (silent, quick) = join(asked.ask(1000, 200), async {
                    let answer = asked.ask(2, 500).await;
                    (answer, start.elapsed())
                })
                .await;
                assert_eq!((silent, quick), (Err(None), (Ok(Protocol::Http2), Duration::from_millis(2))));
                assert_eq!(asked.ask(1000, 5000).await, Ok(Protocol::Http2));
                assert_eq!((asked.times.get(), start.elapsed()), (2, Duration::from_secs(1)), "it was asked once");
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn question_of_a_worker_that_has_ended_is_asked_anew() {
        let asked = Asked::new();
        let ended = LocalSet::new();
        ended.run_until(async { assert_eq!(asked.ask(100, 10).await, Err(None)) }).await;
        drop(ended);
        LocalSet::new()
            .run_until(async { assert_eq!((asked.ask(100, 500).await, asked.times.get()), (Ok(Protocol::Http2), 2)) })
            .await;
    }
}
