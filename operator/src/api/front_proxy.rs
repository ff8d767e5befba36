//! Who asks: header fields, believed from the API server's front proxy only.
//!
//! Kubernetes publishes how to tell it, in the ConfigMap `extension-apiserver-authentication` of `kube-system`.

use std::{
    collections::BTreeMap,
    sync::{Arc, RwLock},
};

use axum::http::HeaderMap;
use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Client,
    runtime::{WatchStreamExt as _, watcher},
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::reply::Failure;
use crate::{
    certs::{self, Certs},
    https::{PROTOCOLS, Peer},
};

const NAMESPACE: &str = "kube-system";
const CONFIG_MAP: &str = "extension-apiserver-authentication";

/// A person or a program, as the API server knows them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Caller {
    /// User name.
    pub user: String,
    /// UID, if the API server says it.
    pub uid: Option<String>,
    /// Groups.
    pub groups: Vec<String>,
    /// What else is known of them, such as scopes.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Which front proxy is believed; follows the ConfigMap. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FrontProxies {
    rules: Arc<RwLock<Option<Arc<Rules>>>>,
    tls: watch::Sender<Arc<ServerConfig>>,
    certs: Certs,
}

/// How a front proxy is told from others, and how it says who asks.
#[derive(Debug)]
struct Rules {
    /// Common names of its certificate; empty: any.
    names: Vec<String>,
    user_headers: Vec<String>,
    uid_headers: Vec<String>,
    group_headers: Vec<String>,
    extra_prefixes: Vec<String>,
}

impl FrontProxies {
    /// Nobody is believed yet.
    pub fn new(certs: Certs) -> Self {
        let tls = Arc::new(certs::server_config(certs.clone(), &PROTOCOLS));
        Self { rules: Arc::default(), tls: watch::Sender::new(tls), certs }
    }

    /// TLS of the API, which asks for certificates of the front proxy's CA.
    pub fn tls(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.tls.subscribe()
    }

    /// Follows the ConfigMap until shut-down.
    pub async fn follow(&self, client: Client, shutdown: CancellationToken) {
        let config = watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP}"));
        let changes = watcher(kube::Api::<ConfigMap>::namespaced(client, NAMESPACE), config).default_backoff().touched_objects();
        pin_mut!(changes);
        while let Some(Some(change)) = shutdown.run_until_cancelled(changes.next()).await {
            let installed = change.map_err(|error| error.to_string()).and_then(|map| self.install(&map.data.unwrap_or_default()));
            match installed {
                Ok(()) => info!("The API server's front proxy is known."),
                Err(error) => warn!(error, "ConfigMap {NAMESPACE}/{CONFIG_MAP} can't be used; what was known before stays."),
            }
        }
    }

    /// Believes the front proxy that this data describes.
    pub fn install(&self, data: &BTreeMap<String, String>) -> Result<(), String> {
        let ca = data.get("requestheader-client-ca-file").ok_or("it has no requestheader-client-ca-file")?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
            let certificate = certificate.map_err(|error| format!("its CA can't be read: {error}"))?;
            roots.add(certificate).map_err(|error| format!("its CA can't be used: {error}"))?;
        }
        let rules = Rules::read(data)?;
        // Who shows no certificate gets an answer that says so, instead of a broken handshake.
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), certs::provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| format!("its CA can't be used: {error}"))?;
        let tls = certs::server_config_with(verifier, self.certs.clone(), &PROTOCOLS);
        self.tls.send_replace(Arc::new(tls));
        *self.rules.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Arc::new(rules));
        Ok(())
    }

    /// Who asks. Without a certificate of the front proxy, the header fields are worth nothing.
    pub(super) fn identify(&self, peer: &Peer, headers: &HeaderMap) -> Result<Caller, Failure> {
        let rules = self.rules.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let rules = rules.ok_or(Failure::NoFrontProxy)?;
        let certificate = peer.0.as_ref().ok_or(Failure::Unauthenticated("there is no client certificate"))?;
        if !rules.names.is_empty() && !common_names(certificate).iter().any(|name| rules.names.contains(name)) {
            return Err(Failure::Unauthenticated("the client certificate has another name than the front proxy's"));
        }
        rules.caller(headers).ok_or(Failure::Unauthenticated("the front proxy names no user"))
    }
}

impl Rules {
    fn read(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let list = |key: &str, default: &[&str]| match data.get(key) {
            None => Ok(default.iter().map(|&name| name.to_owned()).collect()),
            Some(json) => {
                serde_json::from_str::<Vec<String>>(json).map_err(|error| format!("{key} is not a list of strings: {error}"))
            }
        };
        Ok(Self {
            names: list("requestheader-allowed-names", &[])?,
            user_headers: list("requestheader-username-headers", &["X-Remote-User"])?,
            uid_headers: list("requestheader-uid-headers", &[])?,
            group_headers: list("requestheader-group-headers", &["X-Remote-Group"])?,
            extra_prefixes: list("requestheader-extra-headers-prefix", &["X-Remote-Extra-"])?,
        })
    }

    fn caller(&self, headers: &HeaderMap) -> Option<Caller> {
        let values = |name: &str| -> Vec<String> {
            let all = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
            all.filter(|value| !value.is_empty()).map(str::to_owned).collect()
        };
        let first = |names: &[String]| names.iter().find_map(|name| values(name).into_iter().next());
        Some(Caller {
            user: first(&self.user_headers)?,
            uid: first(&self.uid_headers),
            groups: self.group_headers.iter().flat_map(|name| values(name)).collect(),
            extra: self.extra(headers),
        })
    }

    fn extra(&self, headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
        let mut extra = BTreeMap::<String, Vec<String>>::new();
        for (name, value) in headers {
            let key = self.extra_prefixes.iter().find_map(|prefix| name.as_str().strip_prefix(&prefix.to_ascii_lowercase()));
            if let (Some(key), Ok(value)) = (key, value.to_str()) {
                extra.entry(percent_decoded(key)).or_default().push(value.to_owned());
            }
        }
        extra
    }
}

fn common_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok()).map(str::to_owned).collect()
}

/// Keys of extra fields are percent-encoded, for they may hold what a field name can't. What is no encoding stays as it is.
fn percent_decoded(key: &str) -> String {
    let mut decoded = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).filter(|_| byte == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(value) => {
                decoded.push(value);
                rest = &tail[2..];
            }
            None => {
                decoded.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_| key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caller_is_what_the_configured_fields_say() {
        let data = [
            ("requestheader-username-headers", r#"["X-User", "X-Remote-User"]"#),
            ("requestheader-extra-headers-prefix", r#"["X-Remote-Extra-"]"#),
        ];
        let rules = Rules::read(&data.map(|(key, value)| (key.to_owned(), value.to_owned())).into()).unwrap();
        let mut headers = HeaderMap::new();
        headers.append("x-remote-user", "alice".parse().unwrap());
        headers.append("x-remote-group", "dev".parse().unwrap());
        headers.append("x-remote-group", "ops".parse().unwrap());
        headers.append("x-remote-extra-example.org%2fscope", "read".parse().unwrap());
        let caller = rules.caller(&headers).unwrap();
        assert_eq!((caller.user.as_str(), caller.groups), ("alice", vec!["dev".to_owned(), "ops".to_owned()]));
        assert_eq!(caller.extra, [("example.org/scope".to_owned(), vec!["read".to_owned()])].into());
        assert_eq!(rules.caller(&HeaderMap::new()), None);
    }

    #[test]
    fn odd_percent_signs_stay() {
        for (encoded, decoded) in [("a%2Fb", "a/b"), ("a%", "a%"), ("%zz", "%zz"), ("%2", "%2"), ("%ff", "%ff")] {
            assert_eq!(percent_decoded(encoded), decoded);
        }
    }
}
