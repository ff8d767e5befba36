//! What the API server believes the operator by.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::ByteString;
use x509_parser::{pem::Pem, prelude::FromDer};

use super::{emergency, names, unseen};
use crate::{
    cluster::{OPERATOR, WEBHOOKS},
    command::check::{
        Finding,
        facts::{API_SERVICE, Gap, Installed},
    },
};

const DAY: i64 = 86_400;

/// The operator renews the CA long before; one this near to its end means that it does not.
const CA_NOTICE_DAYS: i64 = 7;

pub(super) fn bundles(facts: &Installed) -> Finding {
    const WHAT: &str = "CA bundles";
    for (kind, gap) in [("Mutating", facts.mutating.as_ref().err()), ("Validating", facts.validating.as_ref().err())] {
        match gap {
            Some(Gap::NotFound) => {
                let lost = if kind == "Mutating" { "no pod gets a sidecar" } else { "wrong documents are not refused" };
                return Finding::failed(
                    WHAT,
                    format!("{kind}WebhookConfiguration {WEBHOOKS} is not there: {lost}"),
                    "helm upgrade brings it back",
                );
            }
            Some(gap) => {
                return Finding::warning(
                    WHAT,
                    format!("{kind}WebhookConfiguration: {gap}"),
                    unseen("get webhook configurations"),
                );
            }
            None => {}
        }
    }
    let bundles = bundles_of(facts);
    let empty: Vec<String> = bundles.iter().filter(|(_, bundle)| bundle.is_none()).map(|(name, _)| name.clone()).collect();
    let distinct: BTreeSet<&Vec<u8>> = bundles.values().flatten().collect();
    let hint = format!(
        "the operator's leader writes them; look for its errors: kubectl -n {} logs deployment/{OPERATOR} --all-pods\n{}",
        facts.operator_namespace,
        emergency()
    );
    if !empty.is_empty() {
        Finding::failed(WHAT, format!("no caBundle in {}", names(&empty)), hint)
    } else if distinct.len() > 1 {
        Finding::failed(WHAT, "webhooks and APIService carry different CA bundles", hint)
    } else {
        Finding::ok(WHAT, format!("the same in {} places", bundles.len()))
    }
}

pub(super) fn certificate(facts: &Installed) -> Finding {
    const WHAT: &str = "certificates";
    let restart = format!("kubectl -n {} rollout restart deployment/{OPERATOR}", facts.operator_namespace);
    let Some(bundle) = bundles_of(facts).into_values().flatten().next() else {
        return Finding::failed(WHAT, "no CA to look at", restart);
    };
    // During a rotation there are two; the one that lives longest signs.
    match ends(&bundle).into_iter().max() {
        None => Finding::failed(WHAT, "the CA bundle holds no certificate", restart),
        Some(end) if end <= facts.now => {
            Finding::failed(WHAT, format!("the CA ended {} days ago", (facts.now - end) / DAY), restart)
        }
        Some(end) if end - facts.now < CA_NOTICE_DAYS * DAY => {
            Finding::warning(WHAT, format!("the CA ends in {} days and has no successor", (end - facts.now) / DAY), restart)
        }
        Some(end) => Finding::ok(WHAT, format!("the CA is valid for {} more days", (end - facts.now) / DAY)),
    }
}

/// The bundles that the API server believes, by the object they stand in.
fn bundles_of(facts: &Installed) -> BTreeMap<String, Option<Vec<u8>>> {
    let mut bundles = BTreeMap::new();
    let bytes = |bundle: &Option<ByteString>| bundle.as_ref().map(|bundle| bundle.0.clone()).filter(|bundle| !bundle.is_empty());
    if let Ok(configuration) = &facts.mutating {
        for webhook in configuration.webhooks.iter().flatten() {
            bundles.insert(format!("mutating webhook {}", webhook.name), bytes(&webhook.client_config.ca_bundle));
        }
    }
    if let Ok(configuration) = &facts.validating {
        for webhook in configuration.webhooks.iter().flatten() {
            bundles.insert(format!("validating webhook {}", webhook.name), bytes(&webhook.client_config.ca_bundle));
        }
    }
    if let Ok(service) = &facts.api_service {
        bundles.insert(format!("APIService {API_SERVICE}"), service.spec.as_ref().and_then(|spec| bytes(&spec.ca_bundle)));
    }
    bundles
}

fn ends(bundle: &[u8]) -> Vec<i64> {
    let certificates = Pem::iter_from_buffer(bundle).filter_map(Result::ok);
    certificates
        .filter_map(|pem| {
            let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&pem.contents).ok()?;
            Some(certificate.validity().not_after.timestamp())
        })
        .collect()
}
