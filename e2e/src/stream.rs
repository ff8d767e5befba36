//! A sidecar that is nothing but its stream to an operator: it says what a test tells it to, and shows what it is told.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, anyhow, bail};
use crds::plan::ObjectRef;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount},
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming, codegen::Service};
use wire::v1::{self, config_client::ConfigClient, down, up};

/// How long connecting and the first answer may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An open stream. It ends when this value is dropped.
pub struct ScriptedSidecar {
    up: mpsc::Sender<v1::Up>,
    down: Streaming<v1::Down>,
}

impl ScriptedSidecar {
    /// Opens a stream with this bearer token and says Hello.
    ///
    /// # Errors
    /// The operator can't be reached, its certificate is not `ca`'s for `name`, or it refuses the stream: the cause is then a
    /// [`tonic::Status`].
    pub async fn open(operator: SocketAddr, name: &str, ca: &str, token: &str, hello: v1::Hello) -> anyhow::Result<Self> {
        let mut client = ConfigClient::with_origin(connect(operator, name, ca).await?, format!("https://{name}").parse()?);
        let (up, said) = mpsc::channel(16);
        up.send(v1::Up { message: Some(up::Message::Hello(hello)) }).await?;
        let mut request = Request::new(ReceiverStream::new(said));
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        let answer = timeout(CONNECT_TIMEOUT, client.stream(request)).await.context("the operator did not answer")??;
        Ok(Self { up, down: answer.into_inner() })
    }

    /// The next message, at most after `within`.
    ///
    /// # Errors
    /// There was none, or the stream has ended: the cause is then a [`tonic::Status`], if the operator gave one.
    pub async fn next(&mut self, within: Duration) -> anyhow::Result<down::Message> {
        let down = timeout(within, self.down.message()).await.with_context(|| format!("no message within {within:?}"))??;
        down.and_then(|down| down.message).ok_or_else(|| anyhow!("the stream has ended"))
    }

    /// The next plan; what else comes before it is passed over.
    ///
    /// # Errors
    /// As [`ScriptedSidecar::next`].
    pub async fn plan(&mut self, within: Duration) -> anyhow::Result<v1::Plan> {
        self.find(within, |message| match message {
            down::Message::Plan(plan) => Some(plan),
            _ => None,
        })
        .await
    }

    /// The next identity; what else comes before it is passed over.
    ///
    /// # Errors
    /// As [`ScriptedSidecar::next`].
    pub async fn identity(&mut self, within: Duration) -> anyhow::Result<v1::Identity> {
        self.find(within, |message| match message {
            down::Message::Identity(identity) => Some(identity),
            _ => None,
        })
        .await
    }

    /// The next message about Services; what else comes before it is passed over.
    ///
    /// # Errors
    /// As [`ScriptedSidecar::next`].
    pub async fn services(&mut self, within: Duration) -> anyhow::Result<v1::Services> {
        self.find(within, |message| match message {
            down::Message::Services(services) => Some(services),
            _ => None,
        })
        .await
    }

    /// Says something.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn say(&self, message: up::Message) -> anyhow::Result<()> {
        Ok(self.up.send(v1::Up { message: Some(message) }).await?)
    }

    /// Says that a plan is in force.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn ack(&self, plan: &v1::Plan) -> anyhow::Result<()> {
        self.say(up::Message::Ack(v1::Ack { digest: plan.digest.clone() })).await
    }

    async fn find<T>(&mut self, within: Duration, pick: impl Fn(down::Message) -> Option<T>) -> anyhow::Result<T> {
        let found = async {
            loop {
                if let Some(found) = pick(self.next(within).await?) {
                    return anyhow::Ok(found);
                }
            }
        };
        timeout(within, found).await.with_context(|| format!("it did not come within {within:?}"))?
    }
}

/// What the sidecar of `pod` says first, knowing every feature of this version.
pub fn hello(pod: &Pod, proxy: &ObjectRef) -> v1::Hello {
    v1::Hello {
        pod_namespace: pod.namespace().unwrap_or_default(),
        pod_name: pod.name_any(),
        pod_uid: pod.uid().unwrap_or_default(),
        proxy_namespace: proxy.namespace.clone(),
        proxy_name: proxy.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: crds::policy::FEATURES.iter().map(|&feature| feature.to_owned()).collect(),
        incarnation: "scripted".to_owned(),
        ..v1::Hello::default()
    }
}

/// A token as the kubelet would project it into `pod`, for the audience `fetchr.sh`.
///
/// # Errors
/// The API server refuses it: the pod or its service account is gone.
pub async fn token_of(client: &Client, pod: &Pod) -> anyhow::Result<String> {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec!["fetchr.sh".to_owned()],
            expiration_seconds: Some(3600),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.name_any()),
                uid: pod.uid(),
            }),
        },
        ..TokenRequest::default()
    };
    let issued = accounts.create_token_request(account, &PostParams::default(), &request).await?;
    Ok(issued.status.context("the API server issued no token")?.token)
}

/// An HTTP/2 connection as the generated client takes it.
struct Http2(http2::SendRequest<tonic::body::Body>);

impl Service<http::Request<tonic::body::Body>> for Http2 {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

async fn connect(operator: SocketAddr, name: &str, ca: &str) -> anyhow::Result<Http2> {
    let handshake = async {
        let socket = TcpStream::connect(operator).await?;
        socket.set_nodelay(true)?;
        let tls = TlsConnector::from(Arc::new(trusting(ca)?));
        let socket = tls.connect(ServerName::try_from(name.to_owned())?, socket).await?;
        let builder = http2::Builder::new(TokioExecutor::new());
        let (sender, connection) = builder.handshake(TokioIo::new(socket)).await?;
        // It ends with the sender, or with the operator: whoever reads the stream learns of it.
        tokio::spawn(connection);
        anyhow::Ok(Http2(sender))
    };
    timeout(CONNECT_TIMEOUT, handshake).await.context("the operator could not be reached in time")?
}

fn trusting(ca: &str) -> anyhow::Result<ClientConfig> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate?)?;
    }
    if roots.is_empty() {
        bail!("no certificate in the CA bundle");
    }
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
