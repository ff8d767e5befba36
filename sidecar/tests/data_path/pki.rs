//! Certificates for tests, and TLS clients and servers that use them.

use std::{fs, future::Future, net::SocketAddr, path::PathBuf, sync::Arc};

use crds::proxy::{CaBundle, Certificate, ListenerTls, TlsVersion};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::{
    ClientConfig, ProtocolVersion, RootCertStore, ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// A CA, and a folder for what it signs.
pub(crate) struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "CA of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.crt"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a certificate for these hosts, and its key; whoever reads both in between finds them apart.
    pub(crate) fn issue(&self, name: &str, hosts: &[&str]) -> Certificate {
        self.issue_with(name, hosts, |_| {})
    }

    /// Writes a certificate that is valid no more.
    pub(crate) fn issue_expired(&self, name: &str, hosts: &[&str]) -> Certificate {
        self.issue_with(name, hosts, |params| params.not_after = date_time_ymd(2001, 1, 1))
    }

    fn issue_with(&self, name: &str, hosts: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>()).unwrap();
        // OpenSSL takes a certificate whose subject is its issuer for one that is signed by itself.
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        let file = |ending: &str| Some(self.path(&format!("{name}.{ending}")).display().to_string());
        Certificate { secret_ref: None, certificate_file: file("crt"), key_file: file("key") }
    }

    /// Writes over a file of the folder.
    pub(crate) fn spoil(&self, name: &str) {
        fs::write(self.path(name), "no PEM at all").unwrap();
    }

    pub(crate) fn ca(&self) -> CaBundle {
        CaBundle { secret_ref: None, file: Some(self.path("ca.crt").display().to_string()) }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        Arc::new(roots)
    }

    /// A client that believes this CA, and offers these protocols.
    pub(crate) fn client(&self, alpn: &[&str]) -> ClientConfig {
        self.client_of(alpn, None, &[&TLS13, &TLS12])
    }

    /// One that speaks TLS 1.2 only.
    pub(crate) fn old_client(&self) -> ClientConfig {
        self.client_of(&[], None, &[&TLS12])
    }

    /// One that shows a certificate.
    pub(crate) fn client_with(&self, certificate: &Certificate) -> ClientConfig {
        self.client_of(&[], Some(certificate), &[&TLS13, &TLS12])
    }

    fn client_of(
        &self,
        alpn: &[&str],
        certificate: Option<&Certificate>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider())).with_protocol_versions(versions).unwrap();
        let builder = builder.with_root_certificates(self.roots());
        let mut config = match certificate {
            Some(certificate) => {
                let (chain, key) = pair(certificate);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config
    }

    /// A server with this certificate that knows these protocols, and asks clients for a certificate if it is told to.
    pub(crate) fn server(&self, certificate: &Certificate, alpn: &[&str], asks_clients: bool) -> ServerConfig {
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider())).with_safe_default_protocol_versions();
        let builder = if asks_clients {
            let provider = Arc::new(default_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(self.roots(), provider).build().unwrap();
            builder.unwrap().with_client_cert_verifier(verifier)
        } else {
            builder.unwrap().with_no_client_auth()
        };
        let (chain, key) = pair(certificate);
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config
    }
}

fn pair(certificate: &Certificate) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_file_iter(certificate.certificate_file.as_ref().unwrap()).unwrap();
    let key = PrivateKeyDer::from_pem_file(certificate.key_file.as_ref().unwrap()).unwrap();
    (chain.map(Result::unwrap).collect(), key)
}

/// The TLS of a listener with these certificates.
pub(crate) fn listener_tls(certificates: Vec<Certificate>) -> ListenerTls {
    ListenerTls { certificates, client_ca: None, min_version: TlsVersion::default() }
}

/// Shakes hands as a client that asks for a host.
pub(crate) async fn connect(address: SocketAddr, config: &Arc<ClientConfig>, host: &'static str) -> Shaken {
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::clone(config)).connect(ServerName::try_from(host).unwrap(), stream).await
}

/// What came of a handshake.
pub(crate) type Shaken = std::io::Result<client::TlsStream<TcpStream>>;

/// The names in the certificate that a server showed, as far as they are printable.
pub(crate) fn shown(stream: &client::TlsStream<TcpStream>) -> String {
    let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    String::from_utf8_lossy(&certificate).into_owned()
}

/// The version that was agreed on.
pub(crate) fn version(stream: &client::TlsStream<TcpStream>) -> ProtocolVersion {
    stream.get_ref().1.protocol_version().unwrap()
}

/// Serves TLS, each connection by a task. Handshakes that fail are left alone.
pub(crate) async fn serve<F>(
    config: ServerConfig,
    serve: impl Fn(server::TlsStream<TcpStream>) -> F + Send + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(serve(stream));
            }
        }
    });
    address
}
