//! One connection to a listener, made anew when it has ended.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use super::Listener;

/// Asks one request after the other.
pub(super) struct Client<'a> {
    listener: &'a Listener,
    headers: &'a [(String, String)],
    patience: Duration,
    connection: Option<SendRequest<Empty<Bytes>>>,
}

/// An answer that has come whole.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) status: u16,
    /// Bytes of its body.
    pub(super) bytes: u64,
    pub(super) cache_status: Option<String>,
}

impl<'a> Client<'a> {
    pub(super) fn new(listener: &'a Listener, headers: &'a [(String, String)], patience: Duration) -> Self {
        Self { listener, headers, patience, connection: None }
    }

    /// The answer to a GET. The error says why there is none.
    pub(super) async fn ask(&mut self, url: &Uri) -> Result<Answered, String> {
        let answered = match timeout(self.patience, self.answer(url)).await {
            Ok(answered) => answered,
            Err(_) => Err(format!("there was no answer in {:?}", self.patience)),
        };
        if answered.is_err() {
            self.connection = None;
        }
        answered
    }

    async fn answer(&mut self, url: &Uri) -> Result<Answered, String> {
        let mut kept = self.connection.take();
        if let Some(connection) = &mut kept
            && connection.ready().await.is_err()
        {
            kept = None;
        }
        let mut connection = match kept {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let response = connection.send_request(self.request(url)?).await.map_err(|error| told(&error))?;
        let status = response.status().as_u16();
        let lines: Vec<&str> = response.headers().get_all("cache-status").iter().filter_map(|line| line.to_str().ok()).collect();
        let cache_status = (!lines.is_empty()).then(|| lines.join(", "));
        let (mut bytes, mut body) = (0, response.into_body());
        while let Some(frame) = body.frame().await {
            bytes += frame.map_err(|error| told(&error))?.data_ref().map_or(0, |data| data.len() as u64);
        }
        self.connection = Some(connection);
        Ok(Answered { status, bytes, cache_status })
    }

    fn request(&self, url: &Uri) -> Result<Request<Empty<Bytes>>, String> {
        let target = if self.listener.forward {
            url.to_string()
        } else {
            url.path_and_query().map_or("/", |path| path.as_str()).to_owned()
        };
        let host = url.authority().map_or("localhost", |authority| authority.as_str());
        let mut request = Request::get(target).header(header::USER_AGENT, HeaderValue::from_static("fetchr-warm"));
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header(header::HOST, host);
        }
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        request.body(Empty::new()).map_err(|e| e.to_string())
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>, String> {
        let address = self.listener.address;
        let stream = TcpStream::connect(address).await.map_err(|e| format!("{address}: {e}"))?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| told(&error))?;
        // It ends with the sender.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// With what it is because of.
fn told(error: &hyper::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
