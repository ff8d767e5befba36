//! Certificates and kubeconfigs of a cluster that lives for one test run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

/// A folder of PEM files: `NAME.crt` and `NAME.key` for each authority and each certificate.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

/// An authority that can sign, in memory; its files are in the folder that made it.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// Who a certificate speaks for.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Common name: the user name, for a client.
    pub name: &'a str,
    /// Organisation: the group, for a client.
    pub group: Option<&'a str>,
    /// DNS names and addresses, for a server.
    pub hosts: &'a [&'a str],
}

impl Folder {
    /// Creates the folder where it is missing.
    ///
    /// # Errors
    /// The folder can't be created.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("could not create {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }

    /// Path of the certificate `name`.
    pub fn crt(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.crt"))
    }

    /// Path of the private key `name`.
    pub fn key(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.key"))
    }

    /// Path of the public key `name`.
    pub fn public_key(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.pub"))
    }

    /// Makes an authority and writes it as `name`.
    ///
    /// # Errors
    /// Signing or writing failed.
    pub fn authority(&self, name: &str) -> anyhow::Result<Authority> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name = distinguished(name, None);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        self.write(&self.crt(name), &issuer.pem())?;
        self.write(&self.key(name), &issuer.key().serialize_pem())?;
        Ok(Authority { issuer })
    }

    /// Signs a certificate for server and client use and writes it as `name`.
    ///
    /// # Errors
    /// Signing or writing failed.
    pub fn certificate(&self, name: &str, subject: Subject<'_>, authority: &Authority) -> anyhow::Result<()> {
        let mut params = CertificateParams::new(subject.hosts.iter().map(|&host| host.to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name = distinguished(subject.name, subject.group);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &authority.issuer)?;
        self.write(&self.crt(name), &certificate.pem())?;
        self.write(&self.key(name), &key.serialize_pem())
    }

    /// Makes the key pair that signs service-account tokens and writes it as `name`.
    ///
    /// # Errors
    /// Writing failed.
    pub fn signing_key(&self, name: &str) -> anyhow::Result<()> {
        let key = KeyPair::generate()?;
        self.write(&self.key(name), &key.serialize_pem())?;
        self.write(&self.public_key(name), &key.public_key_pem())
    }

    /// Writes a kubeconfig that needs no other file: `server` trusted by authority `ca`, as the client `user`.
    ///
    /// # Errors
    /// A certificate is missing, or writing failed.
    pub fn kubeconfig(&self, path: &Path, server: &str, ca: &str, user: &str) -> anyhow::Result<()> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fetchr", "cluster": {
                "server": server, "certificate-authority-data": encoded(&self.crt(ca))?}}],
            "users": [{"name": user, "user": {
                "client-certificate-data": encoded(&self.crt(user))?, "client-key-data": encoded(&self.key(user))?}}],
            "contexts": [{"name": "fetchr", "context": {"cluster": "fetchr", "user": user}}],
            "current-context": "fetchr",
        });
        self.write(path, &serde_yaml::to_string(&config)?)
    }

    fn write(&self, path: &Path, text: &str) -> anyhow::Result<()> {
        fs::write(path, text).with_context(|| format!("could not write {}", path.display()))
    }
}

fn distinguished(name: &str, group: Option<&str>) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    if let Some(group) = group {
        distinguished.push(DnType::OrganizationName, group);
    }
    distinguished
}

fn encoded(path: &Path) -> anyhow::Result<String> {
    use base64::Engine;
    let bytes = fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}
