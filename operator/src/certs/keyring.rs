//! What the Secret holds, and what is due. Pure but for the randomness of new keys.
//!
//! Nothing has a state but its age. A new CA or signing key is announced for a week before it is used, so that every pod and
//! every replica knows it by then; the one before stays trusted until it ends (a CA) or for another week (a signing key).

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair as CertificateKey,
    KeyUsagePurpose,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize};
use wire::{
    signed::{KeyPair, PublicKey},
    v1,
};
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

use super::Credentials;

/// Seconds since 1970.
pub type UnixTime = i64;

const DAY: UnixTime = 24 * 3600;
const CA_LIFE: UnixTime = 365 * DAY;
const LEAF_LIFE: UnixTime = 90 * DAY;
const PLAN_KEY_LIFE: UnixTime = 365 * DAY;
/// How long a successor is known before it is used.
const ANNOUNCED: UnixTime = 7 * DAY;
/// How long a signing key is accepted after its successor took over.
const RETIRED: UnixTime = 7 * DAY;
/// Certificates hold from a little before they are made, for clocks differ.
const SKEW: UnixTime = 300;

const CA_CERTIFICATES: &str = "ca.crt";
const CA_KEYS: &str = "ca.key";
const LEAF_CERTIFICATE: &str = "tls.crt";
const LEAF_KEY: &str = "tls.key";
const PLAN_KEYS: &str = "plan-keys.json";

/// The content of the Secret.
#[derive(Debug)]
pub struct Keyring {
    /// Oldest first.
    authorities: Vec<Authority>,
    leaf: Option<Leaf>,
    /// Oldest first.
    plan_keys: Vec<PlanKey>,
}

#[derive(Clone, Debug)]
struct Authority {
    certificate: String,
    key: String,
    facts: Facts,
}

#[derive(Clone, Debug)]
struct Leaf {
    certificate: String,
    key: String,
    facts: Facts,
}

/// What is asked of a certificate.
#[derive(Clone, Debug)]
struct Facts {
    subject: String,
    issuer: String,
    not_before: UnixTime,
    not_after: UnixTime,
    names: Vec<String>,
}

#[derive(Debug)]
struct PlanKey {
    made: UnixTime,
    key: KeyPair,
}

#[derive(Deserialize, Serialize)]
struct StoredPlanKey {
    made: UnixTime,
    pkcs8: String,
}

/// A Secret that can't be used, or a key that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// An entry is broken.
    #[error(
        "the entry {entry} of the Secret can't be read ({reason}); delete the Secret to have a new one made, then restart the injected pods"
    )]
    Entry {
        /// Which.
        entry: &'static str,
        /// Why.
        reason: String,
    },
    /// Something is not there yet.
    #[error("the Secret holds no {0} that is valid now")]
    Missing(&'static str),
    /// A certificate could not be made.
    #[error("could not make a certificate")]
    Make(#[from] rcgen::Error),
    /// A signing key could not be made or written.
    #[error("could not make a signing key")]
    PlanKey(#[from] wire::signed::KeyError),
}

fn broken(entry: &'static str) -> impl Fn(String) -> KeyringError {
    move |reason| KeyringError::Entry { entry, reason }
}

impl Keyring {
    /// Reads the Secret; an empty one holds nothing. A broken CA is an error, for a new one would cut off every sidecar; a broken
    /// leaf is only due.
    pub fn read(data: &BTreeMap<String, Vec<u8>>) -> Result<Self, KeyringError> {
        let leaf = (text(data, LEAF_CERTIFICATE).ok()).zip(text(data, LEAF_KEY).ok());
        let leaf = leaf.and_then(|(certificate, key)| Some(Leaf { facts: Facts::of(&certificate).ok()?, certificate, key }));
        Ok(Self { authorities: read_authorities(data)?, leaf, plan_keys: read_plan_keys(data)? })
    }

    /// The Secret's data.
    pub fn write(&self) -> Result<BTreeMap<String, Vec<u8>>, KeyringError> {
        let plan_keys =
            self.plan_keys.iter().map(|one| Ok(StoredPlanKey { made: one.made, pkcs8: STANDARD.encode(one.key.to_pkcs8()?) }));
        let plan_keys = plan_keys.collect::<Result<Vec<_>, KeyringError>>()?;
        let plan_keys = serde_json::to_string(&plan_keys).expect("numbers and strings are always JSON");
        let ca_keys = self.authorities.iter().map(|authority| authority.key.as_str()).collect();
        let mut entries = vec![(CA_CERTIFICATES, self.bundle()), (CA_KEYS, ca_keys), (PLAN_KEYS, plan_keys)];
        if let Some(leaf) = &self.leaf {
            entries.extend([(LEAF_CERTIFICATE, leaf.certificate.clone()), (LEAF_KEY, leaf.key.clone())]);
        }
        Ok(entries.into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes())).collect())
    }

    /// The keyring with everything made that is due and everything dropped that is over; None if nothing is. `names` are the
    /// DNS names of the leaf.
    pub fn renewed(mut self, names: &[String], now: UnixTime) -> Result<Option<Self>, KeyringError> {
        let mut changed = self.drop_what_is_over(now);
        if self.authorities.last().is_none_or(|newest| is_due(newest.facts.not_before, newest.facts.not_after, now)) {
            self.authorities.push(Authority::make(now)?);
            changed = true;
        }
        if self.plan_keys.last().is_none_or(|newest| is_due(newest.made, newest.made + PLAN_KEY_LIFE, now)) {
            self.plan_keys.push(PlanKey { made: now, key: KeyPair::generate()? });
            changed = true;
        }
        if self.is_leaf_due(names, now) {
            let issuer = self.issuer(now).ok_or(KeyringError::Missing("CA"))?;
            self.leaf = Some(Leaf::make(issuer, names, now)?);
            changed = true;
        }
        Ok(changed.then_some(self))
    }

    /// PEM of every CA certificate.
    pub fn bundle(&self) -> String {
        self.authorities.iter().map(|authority| authority.certificate.as_str()).collect()
    }

    /// Keys that may have signed a cold-start plan.
    pub fn public_keys(&self) -> impl Iterator<Item = PublicKey> + '_ {
        self.plan_keys.iter().map(|one| one.key.public())
    }

    pub(super) fn credentials(&self, now: UnixTime) -> Result<Credentials, KeyringError> {
        let leaf = self.leaf.as_ref().ok_or(KeyringError::Missing("leaf certificate"))?;
        let signer = self.signer(now).ok_or(KeyringError::Missing("signing key"))?;
        let plan_keys = self.public_keys().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect();
        Ok(Credentials {
            leaf: leaf.certified()?.into(),
            trust: v1::Trust { ca_pem: self.bundle(), plan_keys },
            signing_key: KeyPair::from_pkcs8(&signer.key.to_pkcs8()?)?.into(),
        })
    }

    /// When the CA that signs now and the leaf end.
    pub(super) fn expiries(&self, now: UnixTime) -> impl Iterator<Item = (&'static str, UnixTime)> {
        let ca = self.issuer(now).map(|issuer| ("ca", issuer.facts.not_after));
        ca.into_iter().chain(self.leaf.as_ref().map(|leaf| ("leaf", leaf.facts.not_after)))
    }

    fn drop_what_is_over(&mut self, now: UnixTime) -> bool {
        let before = (self.authorities.len(), self.plan_keys.len());
        self.authorities.retain(|authority| now < authority.facts.not_after);
        // A key is over when a later one has been signing for a while.
        let takeovers: Vec<_> = self.plan_keys.iter().map(|key| key.made + ANNOUNCED).collect();
        let newest_settled = takeovers.iter().rposition(|takeover| takeover + RETIRED <= now).unwrap_or(0);
        self.plan_keys.drain(..newest_settled);
        before != (self.authorities.len(), self.plan_keys.len())
    }

    fn is_leaf_due(&self, names: &[String], now: UnixTime) -> bool {
        let Some(leaf) = &self.leaf else { return true };
        let known_issuer = self.authorities.iter().any(|authority| authority.facts.subject == leaf.facts.issuer);
        let usable = leaf.certified().is_ok();
        !known_issuer || !usable || leaf.facts.names != names || is_due(leaf.facts.not_before, leaf.facts.not_after, now)
    }

    /// The CA that signs now: the newest that was announced long enough, else the oldest.
    fn issuer(&self, now: UnixTime) -> Option<&Authority> {
        let announced = |authority: &&Authority| authority.facts.not_before + SKEW + ANNOUNCED <= now;
        self.authorities.iter().rfind(announced).or_else(|| self.authorities.first())
    }

    /// The key that signs cold-start plans now, by the same rule.
    fn signer(&self, now: UnixTime) -> Option<&PlanKey> {
        self.plan_keys.iter().rfind(|key| key.made + ANNOUNCED <= now).or_else(|| self.plan_keys.first())
    }
}

/// Whether two thirds of a life are over, or it has not begun.
fn is_due(not_before: UnixTime, not_after: UnixTime, now: UnixTime) -> bool {
    now < not_before || now - not_before >= (not_after - not_before) / 3 * 2
}

fn text(data: &BTreeMap<String, Vec<u8>>, entry: &'static str) -> Result<String, KeyringError> {
    let bytes = data.get(entry).cloned().unwrap_or_default();
    String::from_utf8(bytes).map_err(|_| broken(entry)("it is not text".to_owned()))
}

fn read_authorities(data: &BTreeMap<String, Vec<u8>>) -> Result<Vec<Authority>, KeyringError> {
    let (certificates, keys) = (pem_blocks(&text(data, CA_CERTIFICATES)?), pem_blocks(&text(data, CA_KEYS)?));
    if certificates.len() != keys.len() {
        let reason = format!("{} keys for {} certificates in {CA_CERTIFICATES}", keys.len(), certificates.len());
        return Err(broken(CA_KEYS)(reason));
    }
    let pairs = certificates.into_iter().zip(keys);
    pairs
        .map(|(certificate, key)| {
            CertificateKey::from_pem(&key).map_err(|error| broken(CA_KEYS)(error.to_string()))?;
            let facts = Facts::of(&certificate).map_err(broken(CA_CERTIFICATES))?;
            Ok(Authority { certificate, key, facts })
        })
        .collect()
}

fn read_plan_keys(data: &BTreeMap<String, Vec<u8>>) -> Result<Vec<PlanKey>, KeyringError> {
    let Some(json) = data.get(PLAN_KEYS) else { return Ok(Vec::new()) };
    let stored: Vec<StoredPlanKey> = serde_json::from_slice(json).map_err(|error| broken(PLAN_KEYS)(error.to_string()))?;
    let read = stored.into_iter().map(|one| {
        let pkcs8 = STANDARD.decode(&one.pkcs8).map_err(|error| broken(PLAN_KEYS)(error.to_string()))?;
        let key = KeyPair::from_pkcs8(&pkcs8).map_err(|error| broken(PLAN_KEYS)(error.to_string()))?;
        Ok(PlanKey { made: one.made, key })
    });
    read.collect()
}

/// Each `-----BEGIN ... END-----` of a text, with its line end.
fn pem_blocks(text: &str) -> Vec<String> {
    let ends = text.split_inclusive("-----\n").collect::<Vec<_>>();
    ends.chunks_exact(2).map(<[&str]>::concat).collect()
}

impl Facts {
    fn of(pem: &str) -> Result<Self, String> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| error.to_string())?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
        let names = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
        let names = names.map(|extension| extension.value.general_names.clone()).unwrap_or_default();
        let dns = |name: &GeneralName<'_>| if let GeneralName::DNSName(name) = name { Some((*name).to_owned()) } else { None };
        Ok(Self {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            names: names.iter().filter_map(dns).collect(),
        })
    }
}

impl Authority {
    fn make(now: UnixTime) -> Result<Self, KeyringError> {
        let key = CertificateKey::generate()?;
        let mut params = CertificateParams::default();
        // The time makes the name one of its own, so that a leaf tells which CA signed it.
        params.distinguished_name.push(DnType::CommonName, format!("fetchr CA {now}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid(&mut params, now - SKEW, now + CA_LIFE)?;
        let certificate = params.self_signed(&key)?.pem();
        let facts = Facts::of(&certificate).map_err(broken(CA_CERTIFICATES))?;
        Ok(Self { key: key.serialize_pem(), certificate, facts })
    }
}

impl Leaf {
    fn make(issuer: &Authority, names: &[String], now: UnixTime) -> Result<Self, KeyringError> {
        let issuing = Issuer::from_ca_cert_pem(&issuer.certificate, CertificateKey::from_pem(&issuer.key)?)?;
        let key = CertificateKey::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "fetchr operator");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        valid(&mut params, now - SKEW, (now + LEAF_LIFE).min(issuer.facts.not_after))?;
        let certificate = params.signed_by(&key, &issuing)?.pem();
        let facts = Facts::of(&certificate).map_err(broken(LEAF_CERTIFICATE))?;
        Ok(Self { key: key.serialize_pem(), certificate, facts })
    }

    fn certified(&self) -> Result<CertifiedKey, KeyringError> {
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| broken(LEAF_CERTIFICATE)(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|error| broken(LEAF_KEY)(error.to_string()))?;
        CertifiedKey::from_der(chain, key, &super::provider()).map_err(|error| broken(LEAF_KEY)(error.to_string()))
    }
}

fn valid(params: &mut CertificateParams, not_before: UnixTime, not_after: UnixTime) -> Result<(), rcgen::Error> {
    let time = |at| ASN1Time::from_timestamp(at).map(|time| time.to_datetime()).map_err(|_| rcgen::Error::Time);
    params.not_before = time(not_before)?;
    params.not_after = time(not_after)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: UnixTime = 1_764_000_000;

    fn names() -> Vec<String> {
        ["fetchr-webhook.fetchr-system.svc", "fetchr-streams.fetchr-system.svc"].map(str::to_owned).to_vec()
    }

    fn fresh() -> Keyring {
        Keyring::read(&BTreeMap::new()).unwrap().renewed(&names(), T0).unwrap().expect("an empty keyring is due")
    }

    fn at(keyring: Keyring, days: i64) -> Keyring {
        let copy = Keyring::read(&keyring.write().unwrap()).unwrap();
        copy.renewed(&names(), T0 + days * DAY).unwrap().unwrap_or(keyring)
    }

    fn signer(keyring: &Keyring, days: i64) -> String {
        keyring.signer(T0 + days * DAY).unwrap().key.public().to_string()
    }

    #[test]
    fn new_keyring_is_complete_and_then_nothing_is_due() {
        let keyring = fresh();
        let again = Keyring::read(&keyring.write().unwrap()).unwrap();
        assert_eq!(again.bundle(), keyring.bundle());
        assert_eq!(again.leaf.as_ref().unwrap().facts.names, names());
        assert!(again.renewed(&names(), T0 + 59 * DAY).unwrap().is_none());
    }

    #[test]
    fn leaf_is_renewed_after_two_thirds_of_its_life_by_the_same_ca() {
        let keyring = fresh();
        let (bundle, leaf) = (keyring.bundle(), keyring.leaf.clone().unwrap());
        let later = at(keyring, 61);
        assert_eq!(later.bundle(), bundle);
        assert_ne!(later.leaf.as_ref().unwrap().certificate, leaf.certificate);
        assert_eq!(later.leaf.unwrap().facts.not_after, T0 + (61 + 90) * DAY);
    }

    #[test]
    fn leaf_follows_its_names_and_its_ca() {
        let renamed = fresh().renewed(&["other.svc".to_owned()], T0).unwrap().expect("due");
        assert_eq!(renamed.leaf.unwrap().facts.names, ["other.svc"]);
        let mut foreign = fresh();
        foreign.leaf = at(fresh(), 0).leaf;
        foreign.authorities = vec![Authority::make(T0 + 1).unwrap()];
        assert!(foreign.renewed(&names(), T0).unwrap().is_some());
    }

    #[test]
    fn next_ca_is_announced_before_it_signs_and_the_old_one_stays_until_it_ends() {
        let keyring = at(fresh(), 244);
        assert_eq!(keyring.authorities.len(), 2, "announced");
        let old = keyring.authorities[0].facts.subject.clone();
        assert_eq!(keyring.issuer(T0 + 250 * DAY).unwrap().facts.subject, old);
        assert_ne!(keyring.issuer(T0 + 252 * DAY).unwrap().facts.subject, old);
        let keyring = at(keyring, 310);
        assert_eq!(keyring.authorities.len(), 2, "both trusted");
        assert_ne!(keyring.leaf.as_ref().unwrap().facts.issuer, old);
        let keyring = at(keyring, 366);
        assert_eq!(keyring.authorities.len(), 1, "the old one is over");
    }

    #[test]
    fn leaf_never_outlives_its_ca() {
        let mut keyring = fresh();
        for day in (0..3000).step_by(5) {
            keyring = at(keyring, day);
            let leaf = &keyring.leaf.as_ref().unwrap().facts;
            let issuer = keyring.authorities.iter().find(|ca| ca.facts.subject == leaf.issuer).expect("its CA is trusted");
            assert!(leaf.not_after <= issuer.facts.not_after && leaf.not_after > T0 + (day + 25) * DAY, "day {day}");
        }
    }

    #[test]
    fn signing_key_is_known_a_week_before_and_a_week_after_it_signs() {
        let keyring = fresh();
        let old = signer(&keyring, 0);
        let keyring = at(keyring, 244);
        assert_eq!(keyring.public_keys().count(), 2, "announced");
        assert_eq!(signer(&keyring, 250), old);
        assert_ne!(signer(&keyring, 251), old);
        let keyring = at(keyring, 257);
        assert_eq!(keyring.public_keys().count(), 2, "still accepted");
        let keyring = at(keyring, 259);
        assert_eq!(keyring.public_keys().count(), 1);
        assert_ne!(signer(&keyring, 259), old);
    }

    #[test]
    fn operator_that_was_away_for_years_starts_again_at_once() {
        let keyring = at(fresh(), 1000);
        assert_eq!(keyring.authorities.len(), 1);
        assert!(keyring.credentials(T0 + 1000 * DAY).is_ok());
    }

    #[test]
    fn broken_ca_is_an_error_and_a_broken_leaf_is_due() {
        let mut data = fresh().write().unwrap();
        data.insert("tls.key".to_owned(), b"nonsense".to_vec());
        assert!(Keyring::read(&data).unwrap().renewed(&names(), T0).unwrap().is_some());
        data.insert("ca.key".to_owned(), b"nonsense".to_vec());
        assert!(Keyring::read(&data).unwrap_err().to_string().starts_with("the entry ca.key of the Secret can't be read"));
    }
}
