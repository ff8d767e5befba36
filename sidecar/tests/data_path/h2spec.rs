//! The listener against h2spec, a suite of cases for HTTP/2 (RFC 9113) and HPACK (RFC 7541). `scripts/h2spec/install` builds it.

use std::{path::Path, process::Stdio};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::process::Command;

use crate::{
    pki::{Pki, listener_tls},
    support::{Origin, Proxy},
};

/// A case that fails in clear text: the port speaks HTTP/1 too, and answers what is neither with its 400.
const IN_CLEAR: &str = "http2/3.5: Sends invalid connection preface";

#[tokio::test]
async fn listener_passes_h2spec() {
    let proxy = Proxy::before(origin().await.address);
    check(&run(&proxy, &[]).await, &[IN_CLEAR]);
}

#[tokio::test]
async fn listener_with_tls_passes_h2spec() {
    let pki = Pki::new();
    let tls = listener_tls(vec![pki.issue("local", &["127.0.0.1"])]);
    let upstream = format!("http://{}", origin().await.address);
    let proxy = Proxy::with(&upstream, |settings| settings.interception.listeners[0].tls = Some(tls));
    check(&run(&proxy, &["--tls", "--insecure"]).await, &[]);
}

/// Answers once it has all of a request: before, an answer would be right too, but h2spec would not see how the rest is taken.
async fn origin() -> Origin {
    Origin::scripted(|stream, _| async move {
        let service = service_fn(async |request: Request<Incoming>| {
            request.into_body().collect().await?;
            Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from_static(b"hello"))))
        });
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await; // half of them break off
    })
    .await
}

/// Holds the cases that failed against those that are known to.
fn check(report: &str, known: &[&str]) {
    assert_eq!(failures(report), known);
    assert!(report.matches("<testcase").count() > 140, "all of it ran");
}

/// The report of h2spec as JUnit writes it.
async fn run(proxy: &Proxy, more: &[&str]) -> String {
    let install = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/h2spec/install");
    let installed = Command::new(install).stderr(Stdio::inherit()).output().await.unwrap();
    assert!(installed.status.success(), "h2spec could not be built; what it said is above");
    let program = String::from_utf8(installed.stdout).unwrap();
    let report = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(program.trim());
    command
        .args(["--strict", "--timeout", "2", "--port", &proxy.address.port().to_string(), "--junit-report"])
        .arg(report.path())
        .args(more);
    // Its status only says that something failed; the report says what.
    command.stdout(Stdio::null()).status().await.unwrap();
    std::fs::read_to_string(report.path()).unwrap()
}

/// `package/number: what is tested` of each case that failed.
fn failures(report: &str) -> Vec<String> {
    let attribute = |text: &str, name: &str| {
        let start = text.find(&format!(" {name}=\"")).map(|at| at + name.len() + 3)?;
        text[start..].split('"').next().map(str::to_owned)
    };
    let cases = report.split("<testcase").skip(1);
    let failed = cases
        .filter(|case| case.split("</testcase>").next().is_some_and(|case| case.contains("<failure") || case.contains("<error")));
    failed
        .map(|case| {
            format!("{}: {}", attribute(case, "package").unwrap_or_default(), attribute(case, "classname").unwrap_or_default())
        })
        .collect()
}
