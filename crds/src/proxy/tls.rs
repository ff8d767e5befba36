//! TLS of listeners and of their upstreams.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::HOST_PATTERN,
    problems::{FieldPath, Problems},
    rule::Rule,
};

const FILES_OR_SECRET: Rule = Rule::new(
    "has(self.secretRef) ? !has(self.certificateFile) && !has(self.keyFile) : has(self.certificateFile) && has(self.keyFile)",
    "a certificate comes from secretRef, or from certificateFile and keyFile",
);
const FILE_OR_SECRET: Rule = Rule::new("has(self.secretRef) != has(self.file)", "a CA comes from secretRef or from file");

/// Pattern of the path of a file.
pub(super) const FILE: &str = "^[^\\x00-\\x1f]+$";

/// Pattern of the name of a Secret.
const SECRET_NAME: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";

/// TLS with the clients of a listener.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerTls {
    /// Certificates, each for the names in it. The first also serves clients that ask for another name, or for none.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub certificates: Vec<Certificate>,
    /// CAs of client certificates. Set: a client must show a certificate of one of them.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "clientCA")]
    pub client_ca: Option<CaBundle>,
    /// The oldest version that is spoken.
    #[serde(default)]
    pub min_version: TlsVersion,
}

/// A version of TLS. Older ones than these are never spoken.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum TlsVersion {
    /// RFC 5246, with forward secrecy and authenticated encryption only.
    #[default]
    #[serde(rename = "TLS1_2")]
    Tls12,
    /// RFC 8446.
    #[serde(rename = "TLS1_3")]
    Tls13,
}

/// A certificate chain and its key, in PEM. It is read again when it changes.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [FILES_OR_SECRET]))]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    /// In a pod: a Secret of type `kubernetes.io/tls` in the pod's namespace. Admission mounts it, so it holds for pods that are
    /// created from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// Standalone: file of the chain, the leaf first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = FILE))]
    pub certificate_file: Option<String>,
    /// Standalone: file of the leaf's private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = FILE))]
    pub key_file: Option<String>,
}

/// Certificates of CAs, in PEM. They are read again when they change.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [FILE_OR_SECRET]))]
#[serde(rename_all = "camelCase")]
pub struct CaBundle {
    /// In a pod: a Secret of the pod's namespace with the key `ca.crt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// Standalone: a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = FILE))]
    pub file: Option<String>,
}

/// A Secret of the pod's namespace.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = SECRET_NAME))]
    pub name: String,
}

/// TLS with a server that the sidecar connects to, such as an upstream of `https://`.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamTls {
    /// The name that is asked for (SNI) and that the server's certificate must have. Default: the host by which it is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = HOST_PATTERN))]
    pub server_name: Option<String>,
    /// CAs that the server's certificate may come from. Default: those of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<CaBundle>,
    /// What is shown to a server that asks for a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<Certificate>,
}

impl ListenerTls {
    pub(super) fn check(&self, at: &FieldPath, problems: &mut Problems) {
        for (index, certificate) in self.certificates.iter().enumerate() {
            certificate.check(&at.field("certificates").index(index), problems);
        }
        if let Some(client_ca) = &self.client_ca {
            client_ca.check(&at.field("clientCA"), problems);
        }
    }

    pub(super) fn secrets(&self) -> impl Iterator<Item = (&SecretRef, SecretKeys)> {
        let certificates = self.certificates.iter().filter_map(Certificate::secret);
        certificates.chain(self.client_ca.iter().filter_map(CaBundle::secret))
    }
}

impl UpstreamTls {
    pub(crate) fn check(&self, at: &FieldPath, problems: &mut Problems) {
        if let Some(name) = self.server_name.as_ref().filter(|name| name.starts_with("*.")) {
            problems
                .add(&at.field("serverName"), format!("{name} is a pattern: write one name, which the certificate must have"));
        }
        if let Some(ca) = &self.ca {
            ca.check(&at.field("ca"), problems);
        }
        if let Some(certificate) = &self.client_certificate {
            certificate.check(&at.field("clientCertificate"), problems);
        }
    }

    pub(super) fn secrets(&self) -> impl Iterator<Item = (&SecretRef, SecretKeys)> {
        let ca = self.ca.iter().filter_map(CaBundle::secret);
        ca.chain(self.client_certificate.iter().filter_map(Certificate::secret))
    }
}

/// Which keys of a Secret are read.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum SecretKeys {
    /// `tls.crt` and `tls.key`.
    Certificate,
    /// `ca.crt`.
    Ca,
    /// `password`.
    Password,
    /// `accessKeyID` and `secretAccessKey`.
    AccessKey,
}

impl SecretKeys {
    /// Their names.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Certificate => &["tls.crt", "tls.key"],
            Self::Ca => &["ca.crt"],
            Self::Password => &["password"],
            Self::AccessKey => &["accessKeyID", "secretAccessKey"],
        }
    }
}

impl Certificate {
    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        let (secret, files) = (self.secret_ref.is_some(), (self.certificate_file.is_some(), self.key_file.is_some()));
        FILES_OR_SECRET.check(if secret { files == (false, false) } else { files == (true, true) }, at, problems);
    }

    pub(super) fn secret(&self) -> Option<(&SecretRef, SecretKeys)> {
        self.secret_ref.as_ref().map(|secret| (secret, SecretKeys::Certificate))
    }
}

impl CaBundle {
    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        FILE_OR_SECRET.check(self.secret_ref.is_some() != self.file.is_some(), at, problems);
    }

    pub(super) fn secret(&self) -> Option<(&SecretRef, SecretKeys)> {
        self.secret_ref.as_ref().map(|secret| (secret, SecretKeys::Ca))
    }
}
