//! Happy eyeballs (RFC 8305): several addresses of one upstream, and the first connection that stands.

use std::{future::Future, net::SocketAddr, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

/// How long an attempt is alone before the next one begins beside it (section 8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Attempts at a time; with more addresses the next one waits for a failure.
const MAX_ATTEMPTS: usize = 8;

/// The addresses in the order in which they are tried: the families by turns, so that one that does not work costs one delay, and
/// each family begun at its `turn`, so that new connections spread over its addresses.
pub(super) fn ordered(addresses: &[SocketAddr], turn: usize, v4_first: bool) -> Vec<SocketAddr> {
    let family = |v4: bool| {
        let of: Vec<SocketAddr> = addresses.iter().copied().filter(|address| address.is_ipv4() == v4).collect();
        let begin = if of.is_empty() { 0 } else { turn % of.len() };
        of.into_iter().cycle().skip(begin)
    };
    let count = |v4: bool| addresses.iter().filter(|address| address.is_ipv4() == v4).count();
    let (mut first, mut second) = (family(v4_first).take(count(v4_first)), family(!v4_first).take(count(!v4_first)));
    let mut ordered = Vec::with_capacity(addresses.len());
    while ordered.len() < addresses.len() {
        ordered.extend(first.next());
        ordered.extend(second.next());
    }
    ordered
}

/// Tries addresses until one succeeds. The error is the last one, or none if time was up first.
pub(super) async fn race<T, E, F>(
    addresses: impl IntoIterator<Item = SocketAddr>,
    deadline: Instant,
    attempt: impl Fn(SocketAddr) -> F,
) -> Result<T, Option<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut left = addresses.into_iter().peekable();
    let mut attempts = FuturesUnordered::new();
    let mut last = None;
    attempts.extend(left.next().map(&attempt));
    while !attempts.is_empty() {
        let more = left.peek().is_some() && attempts.len() < MAX_ATTEMPTS;
        let next = sleep_until(if more { deadline.min(Instant::now() + ATTEMPT_DELAY) } else { deadline });
        tokio::select! {
            biased;
            Some(done) = attempts.next() => match done {
                Ok(stands) => return Ok(stands),
                Err(error) => last = Some(error),
            },
            () = next => {}
        }
        if Instant::now() >= deadline {
            return Err(None);
        }
        attempts.extend(left.next_if(|_| attempts.len() < MAX_ATTEMPTS).map(&attempt));
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, future::pending};

    use tokio::time::sleep;

    use super::*;

    fn addresses(spelled: &[&str]) -> Vec<SocketAddr> {
        spelled.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_and_each_begins_further_on_every_time() {
        let given = addresses(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "[fd00::1]:80", "[fd00::2]:80"]);
        let first = addresses(&["[fd00::1]:80", "10.0.0.1:80", "[fd00::2]:80", "10.0.0.2:80", "10.0.0.3:80"]);
        assert_eq!(ordered(&given, 0, false), first);
        let second = addresses(&["10.0.0.2:80", "[fd00::2]:80", "10.0.0.3:80", "[fd00::1]:80", "10.0.0.1:80"]);
        assert_eq!(ordered(&given, 1, true), second);
        assert_eq!(ordered(&given[..1], 7, false), given[..1]);
        assert!(ordered(&[], 7, false).is_empty());
    }

    /// Races addresses of which the port says what becomes of them; returns the winner and when each was tried.
    async fn run(spelled: &[&str], limit: u64) -> (Result<u16, Option<u16>>, Vec<u128>) {
        let (start, tried) = (Instant::now(), RefCell::new(Vec::new()));
        let attempt = |address: SocketAddr| {
            tried.borrow_mut().push(start.elapsed().as_millis());
            async move {
                match address.port() {
                    1 => pending().await,
                    2 => Err(2),
                    port => {
                        sleep(Duration::from_millis(port.into())).await;
                        Ok(port)
                    }
                }
            }
        };
        let won = race(addresses(spelled), start + Duration::from_millis(limit), attempt).await;
        (won, tried.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn next_address_is_tried_after_a_failure_at_once_and_else_after_the_delay() {
        assert_eq!(run(&["10.0.0.1:2", "10.0.0.2:2", "10.0.0.3:30"], 1000).await, (Ok(30), vec![0, 0, 0]));
        assert_eq!(run(&["10.0.0.1:1", "10.0.0.2:30"], 1000).await, (Ok(30), vec![0, 250]));
        assert_eq!(run(&["10.0.0.1:300", "10.0.0.2:200"], 1000).await, (Ok(300), vec![0, 250]), "the first to stand");
        assert_eq!(run(&["10.0.0.1:2", "10.0.0.2:2"], 1000).await, (Err(Some(2)), vec![0, 0]));
        assert_eq!(run(&["10.0.0.1:1", "10.0.0.2:2"], 1000).await, (Err(None), vec![0, 250]), "time was up");
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_at_a_time_are_bounded() {
        let silent = ["10.0.0.1:1"; 100];
        let (lost, tried) = run(&silent, 60_000).await;
        assert_eq!((lost, tried.len()), (Err(None), MAX_ATTEMPTS));
    }
}
