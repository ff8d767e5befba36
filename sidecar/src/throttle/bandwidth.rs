//! Bytes a second, which all bodies of a rule share. A piece goes on its way at once and is paid for by the pause before the next one, so
//! nobody holds what waits; before its first one, a body waits until what had passed when it came is paid for. The account is pure; time is
//! passed in.

use std::{
    future::Future as _,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::Frame;
use smallvec::SmallVec;
use tokio::time::{Instant as TokioInstant, Sleep, sleep_until};

/// What may go at once after a pause, in time.
const BURST: Duration = Duration::from_millis(50);
/// A piece takes so much of a second at most, so that bodies take turns.
const PIECES_A_SECOND: u64 = 20;
/// Nobody waits for longer than this before a piece, whatever others have left to be paid for.
const MOST_AHEAD: Duration = Duration::from_secs(10);
/// No piece is made smaller than this.
const LEAST_PIECE: u64 = 512;

/// What has passed, and until when it is paid for.
#[derive(Debug, Default)]
pub(super) struct Account {
    paid: Option<Instant>,
}

impl Account {
    /// Charges bytes, and tells until when nothing may follow.
    fn charge(&mut self, bytes: u64, rate: u64, now: Instant) -> Instant {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let from = self.paid.map_or(earliest, |paid| paid.max(earliest));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        let until = (from + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4))).min(now + MOST_AHEAD);
        self.paid = Some(until);
        until
    }
}

/// A number of bytes a second, and what has passed of it.
#[derive(Debug, Default)]
pub(crate) struct Bandwidth {
    /// 0: any number.
    rate: AtomicU64,
    account: Mutex<Account>,
}

impl Bandwidth {
    pub(super) fn configure(&self, rate: Option<u64>) {
        let rate = rate.unwrap_or(0);
        if self.rate.swap(rate, Ordering::Relaxed) != rate {
            *self.account() = Account::default(); // what was to be paid at another rate
        }
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until when all that has passed is paid for.
    fn paid(&self) -> Option<Instant> {
        self.account().paid
    }

    fn charge(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let rate = self.rate.load(Ordering::Relaxed);
        (rate > 0).then(|| self.account().charge(bytes, rate, now))
    }

    fn piece(&self) -> u64 {
        match self.rate.load(Ordering::Relaxed) {
            0 => u64::MAX,
            rate => (rate / PIECES_A_SECOND).max(LEAST_PIECE),
        }
    }
}

/// A body that keeps to what its rules allow.
#[derive(Debug)]
pub(crate) struct Paced {
    shared: SmallVec<[Arc<Bandwidth>; 1]>,
    pause: Option<Pin<Box<Sleep>>>,
    /// Whether it has waited for those that were there before it.
    begun: bool,
}

impl Paced {
    /// None where nothing is shared.
    pub(crate) fn by(shared: SmallVec<[Arc<Bandwidth>; 1]>) -> Option<Box<Self>> {
        (!shared.is_empty()).then(|| Box::new(Self { shared, pause: None, begun: false }))
    }

    /// Bytes of a piece, at most.
    fn piece(&self) -> usize {
        let piece = self.shared.iter().map(|shared| shared.piece()).min().unwrap_or(u64::MAX);
        usize::try_from(piece).unwrap_or(usize::MAX)
    }

    /// Ready when what has passed is paid for.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.begun {
            self.begun = true;
            self.wait_until(self.shared.iter().filter_map(|shared| shared.paid()).max());
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        Poll::Ready(())
    }

    /// When what has passed is paid for, while that is waited for.
    pub(crate) fn pauses_until(&self) -> Option<TokioInstant> {
        self.pause.as_ref().map(|pause| pause.deadline())
    }

    fn wait_until(&mut self, until: Option<Instant>) {
        if let Some(until) = until.filter(|until| *until > TokioInstant::now().into_std()) {
            self.pause = Some(Box::pin(sleep_until(until.into())));
        }
    }

    /// As much of a frame as may pass at once, which is charged, and the rest.
    pub(crate) fn part(&mut self, frame: Frame<Bytes>) -> (Frame<Bytes>, Bytes) {
        match frame.into_data() {
            Ok(mut data) => {
                let most = self.piece();
                let rest = if data.len() > most { data.split_off(most) } else { Bytes::new() };
                self.passed(data.len());
                (Frame::data(data), rest)
            }
            Err(trailers) => (trailers, Bytes::new()),
        }
    }

    /// A piece of so many bytes passes.
    pub(crate) fn passed(&mut self, bytes: usize) {
        let now = TokioInstant::now().into_std();
        self.begun = true;
        self.wait_until(self.shared.iter().filter_map(|shared| shared.charge(bytes as u64, now)).max());
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[test]
    fn bytes_are_paid_for_by_the_pause_after_them() {
        let (mut account, now) = (Account::default(), Instant::now());
        assert_eq!(account.charge(100, 1000, now), now + Duration::from_millis(50), "a part went at once");
        assert_eq!(account.charge(1000, 1000, now), now + Duration::from_millis(1050));
        let later = now + Duration::from_secs(10);
        assert_eq!(account.charge(50, 1000, later), later, "a pause brings no more than a little");
        assert_eq!(account.charge(1 << 30, 1000, later), later + MOST_AHEAD, "nobody waits for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn first_pieces_are_paid_for_too_and_not_at_another_rate() {
        let bandwidth = Arc::new(Bandwidth::default());
        bandwidth.configure(Some(100_000));
        let first_of_another = || async {
            let mut paced = Paced::by([Arc::clone(&bandwidth)].into_iter().collect()).unwrap();
            poll_fn(|cx| paced.poll(cx)).await;
            paced.passed(paced.piece());
        };
        let began = TokioInstant::now();
        for _ in 0..100 {
            first_of_another().await;
        }
        let rate = 100.0 * 5000.0 / began.elapsed().as_secs_f64();
        assert!((98_000.0..105_000.0).contains(&rate), "{rate}");
        let changed = TokioInstant::now();
        bandwidth.configure(Some(1_000_000));
        first_of_another().await;
        assert_eq!(changed.elapsed(), Duration::ZERO, "what was owed is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_together_take_what_there_is() {
        let bandwidth = Arc::new(Bandwidth::default());
        bandwidth.configure(Some(100_000));
        let began = TokioInstant::now();
        let body = |pieces: usize| {
            let mut paced = Paced::by([Arc::clone(&bandwidth)].into_iter().collect()).unwrap();
            async move {
                for _ in 0..pieces {
                    poll_fn(|cx| paced.poll(cx)).await;
                    paced.passed(paced.piece());
                }
            }
        };
        tokio::join!(body(40), body(40), body(20));
        let bytes = 100.0 * 5000.0;
        let rate = bytes / began.elapsed().as_secs_f64();
        assert!((98_000.0..105_000.0).contains(&rate), "{rate}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_holds_nobody_up_and_no_rate_is_no_limit() {
        let bandwidth = Arc::new(Bandwidth::default());
        bandwidth.configure(Some(1024));
        let paced = || Paced::by([Arc::clone(&bandwidth)].into_iter().collect()).unwrap();
        let (mut leaves, mut stays) = (paced(), paced());
        leaves.passed(512);
        drop(leaves);
        let began = TokioInstant::now();
        stays.passed(512);
        poll_fn(|cx| stays.poll(cx)).await;
        assert!(began.elapsed() < Duration::from_millis(1000), "{:?}", began.elapsed());
        bandwidth.configure(None);
        stays.passed(1 << 30);
        poll_fn(|cx| stays.poll(cx)).await;
        assert!(Paced::by(SmallVec::new()).is_none() && stays.piece() == usize::MAX);
    }
}
