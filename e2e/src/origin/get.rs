//! A client that asks once and tells everything that it got.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

const DEADLINE: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its fields, in lower case, with their values.
    pub headers: BTreeMap<String, Vec<String>>,
    /// Its body.
    pub body: String,
}

/// Asks for `url`, `http://host:port/path`, with these fields.
///
/// # Errors
/// There was no whole answer in time.
pub async fn get(url: &Uri, headers: &HeaderMap) -> anyhow::Result<Answer> {
    tokio::time::timeout(DEADLINE, ask(url, headers)).await.with_context(|| format!("{url} did not answer in {DEADLINE:?}"))?
}

async fn ask(url: &Uri, headers: &HeaderMap) -> anyhow::Result<Answer> {
    ensure!(url.scheme_str() == Some("http"), "{url}: expected http://host:port/path");
    let authority = url.authority().context("the URL has no host")?;
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(&address).await.with_context(|| format!("could not connect to {address}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let mut request = Request::get(url.path_and_query().map_or("/", |path| path.as_str())).body(Empty::<Bytes>::new())?;
    request.headers_mut().insert(http::header::HOST, authority.as_str().parse()?);
    request.headers_mut().extend(headers.clone());
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    drop(connection);
    let mut answer =
        Answer { status: head.status.as_u16(), headers: BTreeMap::new(), body: String::from_utf8_lossy(&body).into_owned() };
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        answer.headers.entry(name.as_str().to_owned()).or_default().push(value);
    }
    Ok(answer)
}
