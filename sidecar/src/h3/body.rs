//! The body of a request over HTTP/3.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
    time::Duration,
};

use ::h3::{
    error::{Code, StreamError},
    server::RequestStream,
};
use bytes::{Buf as _, Bytes};
use http::{Method, header, request::Parts};
use http_body::{Frame, SizeHint};
use tokio::time::timeout;

use super::transport::Recv;
use crate::h2::strict;

/// How long a request whose method asks for no body may leave open whether it has one. Most say so with their head.
const UNDECIDED: Duration = Duration::from_millis(50);

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadBody {
    /// It is not as long as announced, or its trailers are malformed.
    #[error("the request's body is malformed")]
    Malformed,
    /// The stream or its connection was ended.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// A body, as it is read from its stream.
pub(crate) struct RequestBody {
    stream: RequestStream<Recv, Bytes>,
    /// What was read to find out whether there is one.
    first: Option<Bytes>,
    /// What is left of the announced length.
    left: Option<u64>,
    ended: bool,
}

impl RequestBody {
    /// Finds out whether a request has a body. An error if its length is malformed.
    pub(super) async fn begin(stream: RequestStream<Recv, Bytes>, head: &Parts) -> Result<Option<Self>, BadBody> {
        let left = match head.headers.get(header::CONTENT_LENGTH) {
            None => None,
            Some(length) => Some(decimal(length.as_bytes()).ok_or(BadBody::Malformed)?),
        };
        let mut body = Self { stream, first: None, left, ended: false };
        let usual = !matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE | Method::TRACE);
        if left.is_some_and(|left| left > 0) || (usual && left.is_none()) {
            return Ok(Some(body));
        }
        match timeout(UNDECIDED, poll_fn(|cx| body.poll_frame(cx))).await {
            Ok(None) => Ok(None),
            Ok(Some(Ok(frame))) => {
                body.first = frame.into_data().ok();
                Ok(Some(body)) // trailers alone are dropped
            }
            Ok(Some(Err(bad))) => Err(bad),
            Err(_) => Ok(Some(body)),
        }
    }

    /// The next piece.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BadBody>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = ready!(self.poll_next(cx));
        self.ended |= !matches!(&polled, Ok(Some(frame)) if frame.is_data());
        Poll::Ready(polled.transpose())
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, BadBody>> {
        let data = ready!(self.stream.poll_recv_data(cx))?.map(|mut data| data.copy_to_bytes(data.remaining()));
        if let Some(data) = data {
            if let Some(left) = &mut self.left {
                *left = left.checked_sub(data.len() as u64).ok_or(BadBody::Malformed)?;
            }
            return Poll::Ready(Ok(Some(Frame::data(data))));
        }
        let trailers = ready!(self.stream.poll_recv_trailers(cx))?;
        if self.left.is_some_and(|left| left > 0)
            || trailers.as_ref().is_some_and(|trailers| strict::check_connection(trailers).is_err())
        {
            return Poll::Ready(Err(BadBody::Malformed));
        }
        Poll::Ready(Ok(trailers.map(Frame::trailers)))
    }

    /// Whether all of it was read.
    pub(crate) fn is_end_stream(&self) -> bool {
        self.ended && self.first.is_none()
    }

    /// What is known of the length of what is left.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.left {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left + self.first.as_ref().map_or(0, |first| first.len() as u64)),
            None => SizeHint::default(),
        }
    }
}

impl Drop for RequestBody {
    /// Nobody wants the rest: the client need not send it (RFC 9114, section 4.1).
    fn drop(&mut self) {
        if !self.ended {
            self.stream.stop_sending(Code::H3_NO_ERROR);
        }
    }
}

/// A length: digits only.
fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}
