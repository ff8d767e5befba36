//! Servers on loopback, and a client that speaks real TLS to them.

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, body::Bytes};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Metrics, Server};
use crate::certs::{self, Installer, Keyring, unix_now};

/// DNS name of every test server.
pub(crate) const NAME: &str = "fetchr-webhook.fetchr-system.svc";

/// Certificates as the leader would make them.
pub(crate) fn installer() -> Installer {
    let installer = Installer::new(&mut prometheus_client::registry::Registry::default());
    renew(&installer);
    installer
}

/// Makes and installs a new keyring.
pub(crate) fn renew(installer: &Installer) {
    let empty = Keyring::read(&std::collections::BTreeMap::new()).unwrap();
    let keyring = empty.renewed(&[NAME.to_owned()], unix_now()).unwrap().unwrap();
    installer.install(&keyring, unix_now()).unwrap();
}

/// The bundle that clients are to trust.
pub(crate) fn ca(installer: &Installer) -> String {
    installer.certs().borrow().as_ref().unwrap().trust.ca_pem.clone()
}

/// A server that ends with this value.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    _end: DropGuard,
}

impl TestServer {
    pub(crate) async fn start(router: Router, tls: watch::Receiver<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = Server {
            name: "test",
            router,
            tls: Some(tls),
            limits: super::FOR_API_SERVERS,
            metrics: Metrics::default(),
            shutdown: shutdown.clone(),
        };
        tokio::spawn(server.serve(listener));
        Self { address, _end: shutdown.drop_guard() }
    }

    /// One request over a connection of its own. `identity` is PEM of a certificate and its key.
    pub(crate) async fn send(
        &self,
        ca: &str,
        identity: Option<(&str, &str)>,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
        let mut sender = self.connect(ca, identity).await?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    }

    /// A connection that stays open.
    pub(crate) async fn connect(
        &self,
        ca: &str,
        identity: Option<(&str, &str)>,
    ) -> Result<SendRequest<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        let connector = TlsConnector::from(Arc::new(client_config(ca, identity)));
        let socket = TcpStream::connect(self.address).await?;
        let stream = connector.connect(ServerName::try_from(NAME)?, socket).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn client_config(ca: &str, identity: Option<(&str, &str)>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(ca.as_bytes()).map(Result::unwrap));
    let builder = ClientConfig::builder_with_provider(certs::provider()).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap).collect();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    }
}
