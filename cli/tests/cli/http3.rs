//! `fetchr upgrade` where a listener speaks HTTP/3, in builds with the feature `http3`.

use std::{
    fs,
    future::poll_fn,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf as _, Bytes};
use h3::client::SendRequest;
use quinn::{ClientConfig, Endpoint, crypto::rustls::QuicClientConfig};
use rcgen::CertifiedKey;
use rustls::{RootCertStore, pki_types::CertificateDer};
use sidecar::h3::transport::{Connection, Opener};
use tokio::{runtime::Runtime, time::timeout};

use crate::{
    run::{DEADLINE, Proxy, policy},
    supervised::{DRAIN, Origin, installed, upgrade, worker},
};

/// Bytes of a frame that the client keeps.
const LARGEST: usize = 64 << 10;

type Sender = SendRequest<Opener, Bytes>;

#[test]
fn upgrade_ends_what_is_under_way_over_http3_in_its_time_and_the_new_worker_speaks_it_afterwards() {
    let (certificate, origin) = (Certificate::new(), Origin::start());
    let (_folder, installed) = installed();
    let mut proxy = Proxy::start_with(&installed, &policy("one"), |port| certificate.document(port, origin.port));
    let (runtime, address, before) = (Runtime::new().unwrap(), proxy.address, worker(&proxy));
    let mut client = runtime.block_on(certificate.connect(address)).expect("the first worker speaks HTTP/3");
    assert_eq!(runtime.block_on(ask(&mut client, "/")).as_deref(), Some("hello"));

    let stream = runtime.spawn(async move { ask(&mut client, "/stream").await });
    origin.has_begun();
    let said = upgrade(&proxy);
    assert_eq!(said.code, 0, "{said:?} {}", proxy.log());
    assert_ne!(worker(&proxy), before);
    let answer = runtime.block_on(async { timeout(DEADLINE, stream).await }).expect("its end in time").unwrap();
    assert_eq!(answer, Some("hello".repeat(30)), "a stream ends in its own time: {}", proxy.log());

    proxy.eventually("the old worker ends", |_| !Path::new(&format!("/proc/{before}/exe")).exists());
    assert!(proxy.log().contains("serves without HTTP/3"), "its port was held until then: {}", proxy.log());
    let began = Instant::now();
    let answer = loop {
        let asked = async {
            let mut client = certificate.connect(address).await?;
            ask(&mut client, "/").await
        };
        match runtime.block_on(asked) {
            Some(answer) => break answer,
            None => assert!(began.elapsed() < DEADLINE, "HTTP/3 does not come back: {}", proxy.log()),
        }
    };
    assert_eq!(answer, "hello");
}

/// The body of an answer with status 200; none if it breaks off.
async fn ask(client: &mut Sender, path: &str) -> Option<String> {
    let request = http::Request::get(format!("https://localhost{path}")).body(()).unwrap();
    let mut stream = client.send_request(request).await.ok()?;
    stream.finish().await.ok()?;
    let head = stream.recv_response().await.ok()?;
    let mut body = Vec::new();
    while let Some(mut data) = stream.recv_data().await.ok()? {
        body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
    }
    (head.status() == 200).then(|| String::from_utf8(body).unwrap())
}

/// A certificate for `localhost`.
struct Certificate {
    folder: tempfile::TempDir,
    der: CertificateDer<'static>,
}

impl Certificate {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(folder.path().join("tls.crt"), cert.pem()).unwrap();
        fs::write(folder.path().join("tls.key"), signing_key.serialize_pem()).unwrap();
        Self { folder, der: cert.der().clone() }
    }

    /// A proxy whose listener speaks HTTP/3.
    fn document(&self, port: u16, upstream: u16) -> String {
        let folder = self.folder.path().display();
        format!(
            "apiVersion: fetchr.sh/v1alpha1\nkind: FetchrProxy\nmetadata: {{name: local}}\nspec:\n  interception:\n    mode: Explicit\n    \
             listeners:\n    - name: web\n      port: {port}\n      upstream: \"http://127.0.0.1:{upstream}\"\n      http3: Enabled\n      \
             tls: {{certificates: [{{certificateFile: {folder}/tls.crt, keyFile: {folder}/tls.key}}]}}\n  drain: {DRAIN}\n"
        )
    }

    /// A client that believes it; none if there is no handshake.
    async fn connect(&self, address: SocketAddr) -> Option<Sender> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut tls = tls.with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(config);
        let connecting = endpoint.connect(address, "localhost").unwrap();
        let quic = timeout(Duration::from_secs(1), connecting).await.ok()?.ok()?;
        let (mut driver, sender) = h3::client::new(Connection::new(quic, LARGEST)).await.ok()?;
        tokio::spawn(async move { poll_fn(|cx| driver.poll_close(cx)).await });
        Some(sender)
    }
}
