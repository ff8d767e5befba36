//! The gRPC server that sidecars open their streams to.

mod auth;
mod outgoing;
mod serve;

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crds::{
    plan::{ObjectRef, PlanKey},
    policy::FEATURES,
};
use futures::Stream;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};
use wire::v1::{self, config_server::Config};

pub use auth::{Authenticator, Caller};
use outgoing::{Guard, Outgoing};
pub use serve::{Metrics, serve};

use crate::{
    certs::Certs,
    deliver::{Features, Hello, Hub, Session},
    index::Shared,
};

/// A sidecar that has not said Hello by then is no sidecar.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest message of a sidecar, in bytes: an answer to a command holds a whole configuration.
const MAX_MESSAGE: usize = 4 << 20;
/// Most features in a Hello, and longest name of one.
const MAX_FEATURES: (usize, usize) = (256, 64);

/// The service behind `fetchr.v1.Config`.
pub struct Service {
    /// Where streams are kept.
    pub hub: Hub,
    /// What identities are computed from.
    pub index: Shared,
    /// Who may open a stream.
    pub authenticator: Authenticator,
    /// Namespace whose proxies may serve pods of any namespace.
    pub operator_namespace: String,
    /// What sidecars are to trust.
    pub certs: Certs,
    /// Ends all streams.
    pub shutdown: CancellationToken,
}

#[tonic::async_trait]
impl Config for Service {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<v1::Down, Status>> + Send>>;

    async fn stream(&self, request: Request<Streaming<v1::Up>>) -> Result<Response<Self::StreamStream>, Status> {
        let caller = self.authenticator.check(request.metadata()).await?;
        let left = caller.expires.duration_since(SystemTime::now()).unwrap_or_default();
        let until = Instant::now() + left;
        let mut incoming = request.into_inner();
        let hello = self.hello(caller, &mut incoming).await?;
        let (session, inbox) = self.hub.join(hello, &self.index.read(), &self.shutdown);
        info!(pod = %session.pod, version = session.version, plan = %session.key, "Stream opened.");
        let guard = Guard::new(self.hub.clone(), session.clone());
        tokio::spawn(listen(self.hub.clone(), session.clone(), incoming));
        Ok(Response::new(Box::pin(Outgoing::new(guard, inbox, self.certs.clone(), until).into_stream())))
    }
}

impl Service {
    /// Reads the first message, and believes of it only what the token proves.
    async fn hello(&self, caller: Caller, incoming: &mut Streaming<v1::Up>) -> Result<Hello, Status> {
        let first = timeout(HELLO_TIMEOUT, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded(format!("no Hello within {} s", HELLO_TIMEOUT.as_secs())))??;
        let Some(v1::up::Message::Hello(hello)) = first.and_then(|up| up.message) else {
            return Err(Status::invalid_argument("the first message of a stream must be Hello"));
        };
        accept_hello(hello, caller, &self.operator_namespace)
    }
}

fn accept_hello(hello: v1::Hello, caller: Caller, operator_namespace: &str) -> Result<Hello, Status> {
    let says = (hello.pod_namespace.as_str(), hello.pod_name.as_str(), hello.pod_uid.as_str());
    if says != (caller.pod.namespace.as_str(), caller.pod.name.as_str(), caller.uid.as_str()) {
        let message =
            format!("the token is bound to pod {}, but Hello names {}/{}", caller.pod, hello.pod_namespace, hello.pod_name);
        return Err(Status::permission_denied(message));
    }
    let proxy = ObjectRef::new(hello.proxy_namespace, hello.proxy_name);
    if proxy.namespace != caller.pod.namespace && proxy.namespace != operator_namespace {
        let message = format!("FetchrProxy {proxy} is in a namespace that pods of {} have no access to", caller.pod.namespace);
        return Err(Status::permission_denied(message));
    }
    let (most, longest) = MAX_FEATURES;
    if hello.features.len() > most || hello.features.iter().any(|feature| feature.len() > longest) {
        return Err(Status::invalid_argument(format!("at most {most} features of {longest} bytes may be announced")));
    }
    let takes_services = hello.features.iter().any(|feature| feature == wire::service::FEATURE);
    Ok(Hello {
        key: PlanKey { pod_namespace: caller.pod.namespace.clone(), proxy },
        pod: caller.pod,
        uid: caller.uid,
        // What no policy is made of makes no difference to a plan, and must not multiply the groups that plans are made for.
        features: hello.features.into_iter().filter(|feature| FEATURES.contains(&feature.as_str())).collect::<Features>(),
        takes_services,
        version: hello.version,
        digest: hello.plan_digest,
    })
}

/// Hears a sidecar out until either side ends the stream.
async fn listen(hub: Hub, session: Arc<Session>, mut incoming: Streaming<v1::Up>) {
    loop {
        tokio::select! {
            () = session.ended().cancelled() => break,
            message = incoming.message() => match message {
                Ok(Some(up)) => hub.hear(&session, up),
                Ok(None) => break,
                Err(status) => {
                    debug!(pod = %session.pod, %status, "Stream broke off.");
                    break;
                }
            },
        }
    }
    hub.leave(&session);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> Caller {
        Caller { pod: ObjectRef::new("shop", "web-1"), uid: "u1".to_owned(), expires: SystemTime::UNIX_EPOCH }
    }

    fn hello() -> v1::Hello {
        v1::Hello {
            pod_namespace: "shop".to_owned(),
            pod_name: "web-1".to_owned(),
            pod_uid: "u1".to_owned(),
            proxy_namespace: "shop".to_owned(),
            proxy_name: "web".to_owned(),
            features: vec!["headers".to_owned()],
            ..v1::Hello::default()
        }
    }

    #[test]
    fn hello_that_fits_the_token_is_accepted() {
        let hello = accept_hello(hello(), caller(), "fetchr-system").unwrap();
        assert_eq!(hello.key.to_string(), "pods of shop by shop/web");
    }

    #[test]
    fn hello_of_another_pod_is_refused() {
        for change in [
            |hello: &mut v1::Hello| hello.pod_name = "web-2".to_owned(),
            |hello: &mut v1::Hello| hello.pod_namespace = "bank".to_owned(),
            |hello: &mut v1::Hello| hello.pod_uid = "u2".to_owned(),
        ] {
            let mut hello = hello();
            change(&mut hello);
            assert_eq!(accept_hello(hello, caller(), "fetchr-system").unwrap_err().code(), tonic::Code::PermissionDenied);
        }
    }

    #[test]
    fn proxy_of_the_operator_serves_any_pod_and_that_of_a_stranger_none() {
        let asking = |namespace: &str| v1::Hello { proxy_namespace: namespace.to_owned(), ..hello() };
        assert!(accept_hello(asking("fetchr-system"), caller(), "fetchr-system").is_ok());
        assert_eq!(accept_hello(asking("bank"), caller(), "fetchr-system").unwrap_err().code(), tonic::Code::PermissionDenied);
    }

    #[test]
    fn feature_that_nobody_knows_is_ignored() {
        let features = vec!["no-such-feature".to_owned(), FEATURES[0].to_owned()];
        let hello = accept_hello(v1::Hello { features, ..hello() }, caller(), "fetchr-system").unwrap();
        assert_eq!(hello.features, Features::from([FEATURES[0].to_owned()]));
        assert!(!hello.takes_services);
    }

    #[test]
    fn sidecar_that_takes_services_gets_the_same_plans_as_others() {
        let features = vec![wire::service::FEATURE.to_owned()];
        let hello = accept_hello(v1::Hello { features, ..hello() }, caller(), "fetchr-system").unwrap();
        assert!(hello.takes_services && hello.features.is_empty());
    }

    #[test]
    fn endless_list_of_features_is_refused() {
        let many = v1::Hello { features: vec!["x".to_owned(); MAX_FEATURES.0 + 1], ..hello() };
        let long = v1::Hello { features: vec!["x".repeat(MAX_FEATURES.1 + 1)], ..hello() };
        for hello in [many, long] {
            assert_eq!(accept_hello(hello, caller(), "fetchr-system").unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    }
}
