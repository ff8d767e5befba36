//! Probes and hooks of the application that were pointed at the sidecar: the original is called, without policy and record.
//!
//! Only what the injector wrote into `FETCHR_PROBES` is ever called, so the port is no way to reach anything else.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::core::v1::{GRPCAction, HTTPGetAction, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use wire::health::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// The kubelet has its own, shorter limit and hangs up; this one is for whoever does not.
const TIMEOUT: Duration = Duration::from_secs(60);
/// What of an answer is handed on; the kubelet reads no more itself.
const MAX_BODY: usize = 10 << 10;

/// The probes that were rewritten, and the address of the application.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    originals: BTreeMap<String, Original>,
    address: Option<IpAddr>,
}

/// One probe as it was written; one field is set.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Original {
    http_get: Option<HTTPGetAction>,
    tcp_socket: Option<TCPSocketAction>,
    grpc: Option<GRPCAction>,
}

/// A probe that failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failed {
    /// The status of the application, or 503.
    pub status: StatusCode,
    /// What it answered, or what went wrong.
    pub message: String,
}

impl Probes {
    /// Reads `FETCHR_PROBES`. `address` is where the kubelet would have asked: the pod's.
    pub fn parse(json: &str, address: IpAddr) -> Result<Self, String> {
        let originals = if json.is_empty() { Ok(BTreeMap::new()) } else { serde_json::from_str(json) };
        let originals = originals.map_err(|error| format!("{}: {error}", wire::env::PROBES))?;
        Ok(Self { originals, address: Some(address) })
    }

    /// The probe of a container, if it was rewritten. `kind` is such as `readiness`.
    pub fn of(&self, container: &str, kind: &str) -> Option<Probe<'_>> {
        let original = self.originals.get(&format!("{container}/{kind}"))?;
        Some(Probe { original, address: self.address? })
    }
}

/// A probe that can be called.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    original: &'a Original,
    address: IpAddr,
}

impl Probe<'_> {
    /// Calls the application. `agent` is the kubelet's `User-Agent`, which applications know probes by.
    pub async fn call(&self, agent: Option<&HeaderValue>) -> Result<String, Failed> {
        match timeout(TIMEOUT, self.ask(agent)).await {
            Ok(answer) => answer,
            Err(_) => Err(failed(format!("no answer within {} s", TIMEOUT.as_secs()))),
        }
    }

    async fn ask(&self, agent: Option<&HeaderValue>) -> Result<String, Failed> {
        match self.original {
            Original { http_get: Some(action), .. } => self.http(action, agent).await,
            Original { tcp_socket: Some(action), .. } => self.connect(port(&action.port)?).await.map(|_| String::new()),
            Original { grpc: Some(action), .. } => self.grpc(action).await,
            _ => Err(failed("the probe has neither httpGet nor tcpSocket nor grpc".to_owned())),
        }
    }

    async fn http(&self, action: &HTTPGetAction, agent: Option<&HeaderValue>) -> Result<String, Failed> {
        let address = SocketAddr::new(self.address, port(&action.port)?);
        let request = request(action, address, agent).map_err(|error| failed(format!("httpGet can't be sent: {error}")))?;
        let socket = self.connect(address.port()).await?;
        let response = if action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) {
            let tls = TlsConnector::from(Arc::new(any_certificate()));
            send(tls.connect(ServerName::from(self.address), socket).await.map_err(|error| failed(error.to_string()))?, request)
                .await
        } else {
            send(socket, request).await
        };
        let response = response.map_err(|error| failed(error.to_string()))?;
        let status = response.status();
        let body = match Limited::new(response.into_body(), MAX_BODY).collect().await {
            Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            // The kubelet would stop reading here too; the status alone decides.
            Err(error) if error.is::<LengthLimitError>() => String::new(),
            Err(error) => return Err(failed(error.to_string())),
        };
        // As the kubelet judges it; a redirect is not followed, but it is no failure.
        if (200..400).contains(&status.as_u16()) { Ok(body) } else { Err(Failed { status, message: body }) }
    }

    async fn grpc(&self, action: &GRPCAction) -> Result<String, Failed> {
        let port = u16::try_from(action.port).map_err(|_| failed(format!("{} is no port", action.port)))?;
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", SocketAddr::new(self.address, port)))
            .map_err(|error| failed(error.to_string()))?;
        let channel = endpoint.connect().await.map_err(|error| failed(error.to_string()))?;
        let service = action.service.clone().unwrap_or_default();
        let answer = HealthClient::new(channel).check(HealthCheckRequest { service }).await;
        let answer = answer.map_err(|status| failed(format!("{}: {}", status.code(), status.message())))?;
        match answer.into_inner().status() {
            ServingStatus::Serving => Ok("SERVING".to_owned()),
            other => Err(failed(other.as_str_name().to_owned())),
        }
    }

    async fn connect(&self, port: u16) -> Result<TcpStream, Failed> {
        let address = SocketAddr::new(self.address, port);
        TcpStream::connect(address).await.map_err(|error| failed(format!("{address}: {error}")))
    }
}

fn failed(message: String) -> Failed {
    Failed { status: StatusCode::SERVICE_UNAVAILABLE, message }
}

fn port(port: &IntOrString) -> Result<u16, Failed> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).map_err(|_| failed(format!("{number} is no port"))),
        IntOrString::String(name) => Err(failed(format!("port {name:?} has no number"))),
    }
}

fn request(
    action: &HTTPGetAction,
    address: SocketAddr,
    agent: Option<&HeaderValue>,
) -> Result<Request<Empty<Bytes>>, http::Error> {
    let path = action.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut request = Request::get(path.parse::<Uri>()?).body(Empty::new())?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::try_from(address.to_string())?);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.extend(agent.map(|agent| (header::USER_AGENT, agent.clone())));
    for field in action.http_headers.iter().flatten() {
        headers.insert(HeaderName::try_from(&field.name)?, HeaderValue::try_from(&field.value)?);
    }
    Ok(request)
}

async fn send<S>(socket: S, request: Request<Empty<Bytes>>) -> hyper::Result<http::Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    // Ends with the answer's body, or when that is dropped.
    tokio::spawn(connection);
    sender.send_request(request).await
}

/// The kubelet checks no certificate of a probe, since it knows no name for the pod.
fn any_certificate() -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth()
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
