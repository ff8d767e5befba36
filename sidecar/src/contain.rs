//! A bug of ours costs one request or one connection, not the process.

use std::{future::Future, panic::AssertUnwindSafe};

use futures::FutureExt as _;
use prometheus_client::metrics::counter::Counter;

/// Runs a future to its end. None if it panicked, which is counted; what it borrowed must be good for an answer still.
pub(crate) fn contained<T>(panics: &Counter, work: impl Future<Output = T>) -> impl Future<Output = Option<T>> {
    // Not an async function: that would hold the work twice, as its argument and as what it awaits.
    AssertUnwindSafe(work).catch_unwind().map(|done| {
        if done.is_err() {
            panics.inc();
        }
        done.ok()
    })
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, rc::Rc};

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{Empty, Full};
    use hyper::{body::Incoming, service::service_fn};
    use hyper_util::rt::TokioIo;

    use super::*;

    #[tokio::test]
    async fn panic_in_one_request_leaves_its_connection_alive() {
        let panics = Rc::new(Counter::default());
        let counted = Rc::clone(&panics);
        let service = service_fn(move |request: Request<Incoming>| {
            let counted = Rc::clone(&counted);
            async move {
                let served = contained(&counted, async {
                    assert_ne!(request.uri().path(), "/bug", "a bug");
                    200
                });
                let status = served.await.unwrap_or(500);
                Ok::<_, Infallible>(Response::builder().status(status).body(Full::<Bytes>::default()).expect("it is a status"))
            }
        });
        let (client, server) = tokio::io::duplex(4096);
        let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service);
        let asking = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
            tokio::spawn(connection);
            let mut seen = Vec::new();
            for path in ["/", "/bug", "/"] {
                let request = Request::get(path).header("host", "a").body(Empty::<Bytes>::new()).unwrap();
                sender.ready().await.unwrap();
                seen.push(sender.send_request(request).await.unwrap().status().as_u16());
            }
            seen
        };
        let (served, seen) = tokio::join!(serving, asking);
        served.unwrap();
        assert_eq!((seen, panics.get()), (vec![200, 500, 200], 1));
    }
}
