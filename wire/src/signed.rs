//! The signed cold-start plan: what the operator writes into the ConfigMap `fetchr-plan` and a sidecar reads before its first
//! stream stands.
//!
//! Layout of an envelope, in this order:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | [`MAGIC`], with the version of the format |
//! | 64 | Ed25519 signature (RFC 8032) over the magic and all that follows the signature |
//! | rest | a zstd frame of the protobuf message `ColdStart` |
//!
//! The signature is checked before anything is decompressed or parsed. The namespace and the proxy stand inside, so that a
//! plan copied into another namespace or under another key is refused.

use std::{collections::BTreeMap, fmt, str::FromStr};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use crds::plan::{ObjectRef, digest_bytes};
use prost::Message as _;

use crate::v1;

/// First bytes of an envelope; the last one is the version of the format.
pub const MAGIC: [u8; 8] = *b"fxplan\0\x01";
/// Largest message that is decompressed, in bytes.
pub const MAX_MESSAGE: usize = 8 << 20;
/// Largest envelope that [`sign`] makes, in bytes: a ConfigMap holds 1 MiB.
pub const MAX_ENVELOPE: usize = 900 << 10;

const SIGNATURE: usize = 64;
const HEAD: usize = MAGIC.len() + SIGNATURE;
const LEVEL: i32 = 9;

/// Signs cold-start plans.
pub struct KeyPair(Ed25519KeyPair);

impl KeyPair {
    /// A new random key.
    pub fn generate() -> Result<Self, KeyError> {
        Ed25519KeyPair::generate().map(Self).map_err(|_| KeyError::Generate)
    }

    /// The key that [`to_pkcs8`](Self::to_pkcs8) wrote.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        Ed25519KeyPair::from_pkcs8(der).map(Self).map_err(|_| KeyError::Pkcs8)
    }

    /// The private key as PKCS #8 DER (RFC 8410), for a Secret.
    pub fn to_pkcs8(&self) -> Result<Vec<u8>, KeyError> {
        self.0.to_pkcs8().map(|document| document.as_ref().to_vec()).map_err(|_| KeyError::Pkcs8)
    }

    /// The half that sidecars know.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes"))
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyPair").field(&self.public()).finish()
    }
}

/// A key that may have signed a cold-start plan. Written as base64 of its 32 bytes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Its 32 bytes, as in the stream's `Trust`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The keys of a comma-separated list, as in `FETCHR_PLAN_KEYS`.
    pub fn parse_list(list: &str) -> Result<Vec<Self>, KeyError> {
        list.split(',').map(str::trim).filter(|key| !key.is_empty()).map(str::parse).collect()
    }
}

impl TryFrom<&[u8]> for PublicKey {
    type Error = KeyError;

    fn try_from(bytes: &[u8]) -> Result<Self, KeyError> {
        bytes.try_into().map(Self).map_err(|_| KeyError::Public)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = STANDARD.decode(text).map_err(|_| KeyError::Public)?;
        Self::try_from(bytes.as_slice())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

/// A key that is not one.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyError {
    /// The system gave no randomness.
    #[error("no key could be generated")]
    Generate,
    /// Not a private key of ours.
    #[error("not an Ed25519 private key in PKCS #8")]
    Pkcs8,
    /// Not a public key of ours.
    #[error("not an Ed25519 public key: 32 bytes in base64 are expected")]
    Public,
}

/// Why an envelope could not be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SignError {
    /// The ConfigMap could not hold it, or a sidecar would not decompress it.
    #[error(
        "the plan has {message} bytes, compressed {envelope}; at most {MAX_MESSAGE} and {MAX_ENVELOPE} fit a cold-start plan"
    )]
    TooLarge {
        /// Size before compression.
        message: usize,
        /// Size of the envelope.
        envelope: usize,
    },
    /// zstd or the signature failed.
    #[error("the plan could not be compressed and signed")]
    Crypto,
}

/// Why an envelope was refused. [`reason`](OpenError::reason) labels the counter.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// It does not start like an envelope.
    #[error("not a cold-start plan of this version")]
    Format,
    /// None of the known keys signed it.
    #[error("the signature is by none of the known keys")]
    Signature,
    /// It was signed but cannot be read.
    #[error("signed, but not readable: {0}")]
    Content(&'static str),
    /// It is for others.
    #[error("for proxy {proxy} in namespace {namespace}")]
    NotForUs {
        /// Namespace of the pods that it is for.
        namespace: String,
        /// Proxy that it is for.
        proxy: ObjectRef,
    },
}

impl OpenError {
    /// The value of the label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Signature => "signature",
            Self::Content(_) => "content",
            Self::NotForUs { .. } => "not_for_us",
        }
    }
}

/// A plan whose signature holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Opened {
    /// SHA-256 of the document, lower-case hexadecimal.
    pub digest: String,
    /// `crds::plan::Plan` as JSON.
    pub document: Bytes,
    /// For each kind of input, the resourceVersion up to which the operator had seen it.
    pub position: BTreeMap<String, String>,
}

/// Signs `document` (`crds::plan::Plan` as JSON) for the pods of `proxy` in `namespace`. The same input gives the same bytes.
pub fn sign(
    key: &KeyPair,
    namespace: &str,
    proxy: &ObjectRef,
    document: &[u8],
    position: &BTreeMap<String, String>,
) -> Result<Vec<u8>, SignError> {
    let message = v1::ColdStart {
        namespace: namespace.to_owned(),
        proxy_namespace: proxy.namespace.clone(),
        proxy_name: proxy.name.clone(),
        plan: Some(v1::Plan {
            digest: digest_bytes(document),
            document: Bytes::copy_from_slice(document),
            position: position.clone(),
        }),
    }
    .encode_to_vec();
    let compressed = zstd::bulk::compress(&message, LEVEL).map_err(|_| SignError::Crypto)?;
    let size = HEAD + compressed.len();
    if message.len() > MAX_MESSAGE || size > MAX_ENVELOPE {
        return Err(SignError::TooLarge { message: message.len(), envelope: size });
    }
    let signature = key.0.try_sign(&signed_part(&compressed)).map_err(|_| SignError::Crypto)?;
    Ok([&MAGIC, signature.as_ref(), &compressed].concat())
}

/// Opens an envelope that one of `keys` signed for the pods of `proxy` in `namespace`.
pub fn open(envelope: &[u8], keys: &[PublicKey], namespace: &str, proxy: &ObjectRef) -> Result<Opened, OpenError> {
    let rest = envelope.strip_prefix(&MAGIC).ok_or(OpenError::Format)?;
    let (signature, compressed) = rest.split_at_checked(SIGNATURE).ok_or(OpenError::Format)?;
    let signed = signed_part(compressed);
    let by = |key: &PublicKey| UnparsedPublicKey::new(&ED25519, key.as_bytes()).verify(&signed, signature).is_ok();
    if !keys.iter().any(by) {
        return Err(OpenError::Signature);
    }
    let message = zstd::bulk::decompress(compressed, MAX_MESSAGE).map_err(|_| OpenError::Content("zstd"))?;
    let cold = v1::ColdStart::decode(message.as_slice()).map_err(|_| OpenError::Content("protobuf"))?;
    let plan = cold.plan.ok_or(OpenError::Content("no plan"))?;
    let for_proxy = ObjectRef::new(cold.proxy_namespace, cold.proxy_name);
    if cold.namespace != namespace || for_proxy != *proxy {
        return Err(OpenError::NotForUs { namespace: cold.namespace, proxy: for_proxy });
    }
    if plan.digest != digest_bytes(&plan.document) {
        return Err(OpenError::Content("digest"));
    }
    Ok(Opened { digest: plan.digest, document: plan.document, position: plan.position })
}

fn signed_part(compressed: &[u8]) -> Vec<u8> {
    [&MAGIC, compressed].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DOCUMENT: &[u8] = br#"{"proxy":{"namespace":"shop","name":"web"},"settings":{},"policies":[]}"#;

    fn proxy() -> ObjectRef {
        ObjectRef::new("shop", "web")
    }

    fn position() -> BTreeMap<String, String> {
        BTreeMap::from([("policies".to_owned(), "123".to_owned()), ("proxies".to_owned(), "99".to_owned())])
    }

    fn envelope(key: &KeyPair) -> Vec<u8> {
        sign(key, "shop", &proxy(), DOCUMENT, &position()).unwrap()
    }

    #[test]
    fn signed_plan_opens_with_its_key() {
        let key = KeyPair::generate().unwrap();
        let other = KeyPair::generate().unwrap();
        let opened = open(&envelope(&key), &[other.public(), key.public()], "shop", &proxy()).unwrap();
        assert_eq!(opened.document, DOCUMENT);
        assert_eq!(opened.position, position());
        assert_eq!(opened.digest, digest_bytes(DOCUMENT));
    }

    #[test]
    fn same_plan_gives_the_same_bytes() {
        let key = KeyPair::generate().unwrap();
        let again = KeyPair::from_pkcs8(&key.to_pkcs8().unwrap()).unwrap();
        assert_eq!(envelope(&key), envelope(&again));
    }

    #[test]
    fn plan_signed_by_a_stranger_is_refused() {
        let known = KeyPair::generate().unwrap().public();
        let forged = envelope(&KeyPair::generate().unwrap());
        assert_eq!(open(&forged, &[known], "shop", &proxy()), Err(OpenError::Signature));
        assert_eq!(open(&forged, &[], "shop", &proxy()), Err(OpenError::Signature));
    }

    #[test]
    fn plan_for_others_is_refused() {
        let key = KeyPair::generate().unwrap();
        let bytes = envelope(&key);
        let keys = [key.public()];
        for (namespace, proxy) in [("other", proxy()), ("shop", ObjectRef::new("shop", "api"))] {
            let refused = open(&bytes, &keys, namespace, &proxy).unwrap_err();
            assert_eq!(refused.reason(), "not_for_us");
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let key = KeyPair::generate().unwrap();
        let good = envelope(&key);
        for index in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[index] ^= 1 << bit;
                assert!(open(&bad, &[key.public()], "shop", &proxy()).is_err(), "byte {index} bit {bit}");
            }
        }
    }

    #[test]
    fn every_cut_and_every_tail_is_refused() {
        let key = KeyPair::generate().unwrap();
        let good = envelope(&key);
        for length in 0..good.len() {
            assert!(open(&good[..length], &[key.public()], "shop", &proxy()).is_err(), "{length} bytes");
        }
        let tailed = [good.as_slice(), &[0]].concat();
        assert!(open(&tailed, &[key.public()], "shop", &proxy()).is_err());
    }

    #[test]
    fn signed_bomb_is_not_decompressed() {
        let key = KeyPair::generate().unwrap();
        let compressed = zstd::bulk::compress(&vec![0; MAX_MESSAGE + 1], LEVEL).unwrap();
        let signature = key.0.sign(&signed_part(&compressed));
        let bomb = [&MAGIC, signature.as_ref(), &compressed].concat();
        assert_eq!(open(&bomb, &[key.public()], "shop", &proxy()), Err(OpenError::Content("zstd")));
    }

    #[test]
    fn plan_too_large_for_a_config_map_is_not_signed() {
        let key = KeyPair::generate().unwrap();
        // A linear congruential generator: bytes that do not compress.
        let noise: Vec<u8> = (0..MAX_ENVELOPE)
            .scan(1_u32, |state, _| {
                *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                Some((*state >> 24) as u8)
            })
            .collect();
        let refused = sign(&key, "shop", &proxy(), &noise, &position()).unwrap_err();
        assert!(matches!(refused, SignError::TooLarge { .. }), "{refused}");
    }

    #[test]
    fn key_list_is_read_and_wrong_keys_are_named() {
        let keys = [KeyPair::generate().unwrap().public(), KeyPair::generate().unwrap().public()];
        assert_eq!(PublicKey::parse_list(&format!("{}, {}", keys[0], keys[1])).unwrap(), keys);
        assert_eq!(PublicKey::parse_list("").unwrap(), []);
        assert_eq!(PublicKey::parse_list("c2hvcnQ="), Err(KeyError::Public));
        assert_eq!(PublicKey::parse_list("?"), Err(KeyError::Public));
    }

    proptest! {
        #[test]
        fn any_document_comes_back_whole(document in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let key = KeyPair::generate().unwrap();
            let bytes = sign(&key, "shop", &proxy(), &document, &position()).unwrap();
            prop_assert_eq!(open(&bytes, &[key.public()], "shop", &proxy()).unwrap().document, document);
        }

        #[test]
        fn arbitrary_bytes_never_open(tail in proptest::collection::vec(any::<u8>(), 0..512)) {
            let bytes = [&MAGIC[..], &tail].concat();
            prop_assert!(open(&bytes, &[KeyPair::generate().unwrap().public()], "shop", &proxy()).is_err());
        }
    }
}
