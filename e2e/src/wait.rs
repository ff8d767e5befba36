//! Waiting with a deadline: never longer than told, and never silent about why it was in vain.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};

const PAUSE: Duration = Duration::from_millis(10);

/// Calls `probe` until it succeeds, at most for `within`, and returns what it found.
///
/// The probe says what is missing by its error; the last one is the cause of the error returned here.
///
/// # Errors
/// The deadline passed: `what` did not come true, because of the probe's last error.
pub async fn eventually<T>(what: &str, within: Duration, mut probe: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        let missing = match tokio::time::timeout(within.saturating_sub(start.elapsed()), probe()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => error,
            Err(_) => anyhow!("the last look at it did not return in time"),
        };
        if start.elapsed() + PAUSE >= within {
            return Err(missing).with_context(|| format!("within {within:?}, this did not come true: {what}"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn probe_that_succeeds_later_is_awaited() {
        let mut looks = 0;
        let found = eventually("three looks", Duration::from_secs(5), async || {
            looks += 1;
            if looks == 3 { Ok("found") } else { Err(anyhow!("only {looks} looks")) }
        });
        assert_eq!(found.await.unwrap(), "found");
    }

    #[tokio::test]
    async fn error_names_the_wish_and_the_last_obstacle() {
        let error = eventually("the door opens", Duration::from_millis(60), async || Err::<(), _>(anyhow!("it is locked"))).await;
        assert_eq!(format!("{:#}", error.unwrap_err()), "within 60ms, this did not come true: the door opens: it is locked");
    }

    #[tokio::test]
    async fn probe_that_hangs_is_cut_off() {
        let error = eventually("an answer", Duration::from_millis(60), std::future::pending::<anyhow::Result<()>>).await;
        assert!(format!("{:#}", error.unwrap_err()).contains("did not return in time"));
    }
}
