//! Certificates and keys from PEM files.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use aws_lc_rs::digest;
use crds::proxy::{CaBundle, Certificate};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use super::{Read, Secrets, provider, shown};

/// Bytes of a file, at most; bundles of all public CAs have 250 KiB.
const MAX_FILE: u64 = 1 << 20;

/// Why TLS can't be spoken as a document says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file can't be read.
    #[error("could not read {file}: {source}")]
    Read {
        /// Its path.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file has nothing of that kind.
    #[error("{file} holds no {wanted} in PEM")]
    Empty {
        /// Its path.
        file: String,
        /// What was looked for.
        wanted: &'static str,
    },
    /// A file holds something else.
    #[error("{file} is not as it should be: {problem}")]
    Malformed {
        /// Its path.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// Certificate and key don't belong together, or a CA is none.
    #[error("{0}")]
    Refused(#[from] rustls::Error),
    /// Client certificates can't be verified.
    #[error("clientCA: {0}")]
    ClientCa(#[from] rustls::server::VerifierBuilderError),
    /// There are no Secrets here.
    #[error(
        "Secret {0} is not mounted: pods that were created before the proxy named it have to be made anew, and a proxy outside of pods has no Secrets; write certificateFile and keyFile, or file"
    )]
    NoSecrets(String),
    /// A document that the schema would have refused.
    #[error("a certificate comes from secretRef, or from certificateFile and keyFile; a CA from secretRef or file")]
    Nowhere,
    /// The upstream's name can be in no certificate.
    #[error("{0} can't be the name of a certificate: write upstreamTLS.serverName")]
    Name(String),
    /// The system knows no CA.
    #[error("the system has no CA certificates: name those of the server in ca")]
    NoSystemRoots,
}

/// Reads files, and remembers which and what was in them.
pub(crate) struct Reader<'a> {
    secrets: &'a Secrets,
    paths: Vec<PathBuf>,
    digest: digest::Context,
}

/// What is known of a certificate of ours.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leaf {
    /// DNS names that it is for, in lower case.
    pub(super) names: Vec<String>,
    /// End of its validity, in seconds since 1970.
    pub(super) not_after: i64,
    /// What it is called in metrics.
    label: String,
}

impl Leaf {
    pub(super) fn label(&self) -> &str {
        &self.label
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(secrets: &'a Secrets) -> Self {
        Self { secrets, paths: Vec::new(), digest: digest::Context::new(&digest::SHA256) }
    }

    /// What was read, whether or not all went well.
    pub(crate) fn finish(self) -> Read {
        Read { paths: self.paths, digest: self.digest.finish().as_ref().to_vec() }
    }

    fn read(&mut self, path: &Path) -> Result<Vec<u8>, TlsError> {
        self.paths.push(path.to_owned());
        let failed = |source| TlsError::Read { file: shown(path), source };
        if fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
            return Err(TlsError::Malformed { file: shown(path), problem: format!("it has more than {MAX_FILE} bytes") });
        }
        let bytes = fs::read(path).map_err(failed)?;
        self.digest.update(&(bytes.len() as u64).to_be_bytes());
        self.digest.update(&bytes);
        Ok(bytes)
    }

    fn certificates(&mut self, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let pem = self.read(path)?;
        let malformed =
            |error: rustls::pki_types::pem::Error| TlsError::Malformed { file: shown(path), problem: error.to_string() };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(malformed)?;
        if chain.is_empty() {
            return Err(TlsError::Empty { file: shown(path), wanted: "certificate" });
        }
        Ok(chain)
    }

    /// A certificate of ours, with its key.
    pub(super) fn certificate(&mut self, certificate: &Certificate) -> Result<(Arc<CertifiedKey>, Leaf), TlsError> {
        let (chain_file, key_file) = match (&certificate.secret_ref, &certificate.certificate_file, &certificate.key_file) {
            (Some(secret), None, None) => {
                (self.secrets.file(&secret.name, "tls.crt")?, self.secrets.file(&secret.name, "tls.key")?)
            }
            (None, Some(chain), Some(key)) => (chain.into(), key.into()),
            _ => return Err(TlsError::Nowhere),
        };
        let chain = self.certificates(&chain_file)?;
        let pem = self.read(&key_file)?;
        let key = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|_| TlsError::Empty { file: shown(&key_file), wanted: "unencrypted private key" })?;
        let leaf = leaf(&chain[0]).map_err(|problem| TlsError::Malformed { file: shown(&chain_file), problem })?;
        let certified = CertifiedKey::from_der(chain, key, &provider())?;
        Ok((Arc::new(certified), leaf))
    }

    /// CAs to believe.
    pub(super) fn roots(&mut self, bundle: &CaBundle) -> Result<Arc<RootCertStore>, TlsError> {
        let file = match (&bundle.secret_ref, &bundle.file) {
            (Some(secret), None) => self.secrets.file(&secret.name, "ca.crt")?,
            (None, Some(file)) => file.into(),
            _ => return Err(TlsError::Nowhere),
        };
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(&file)? {
            roots.add(certificate).map_err(|error| TlsError::Malformed { file: shown(&file), problem: error.to_string() })?;
        }
        Ok(Arc::new(roots))
    }
}

/// The CAs of the system, read once.
pub(super) fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    if roots.is_empty() { Err(TlsError::NoSystemRoots) } else { Ok(Arc::clone(roots)) }
}

fn leaf(certificate: &CertificateDer<'_>) -> Result<Leaf, String> {
    let (_, parsed) = parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    let alternative = parsed.subject_alternative_name().map_err(|error| error.to_string())?;
    let general: Vec<_> = alternative.iter().flat_map(|names| &names.value.general_names).collect();
    let names: Vec<String> = general
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect();
    let label = names.first().cloned().or_else(|| general.first().map(ToString::to_string)).unwrap_or_default();
    Ok(Leaf { names, not_after: parsed.validity().not_after.timestamp(), label })
}
