//! A sidecar of an older version beside one of this version.

use std::time::Duration;

use anyhow::{Context, ensure};
use crds::plan::{ObjectRef, Plan};
use serde_json::json;
use wire::v1;

use super::{HEADER, Stage};
use crate::loopback::{NAME, NAMESPACE};
use crate::origin::get::get;
use crate::wait::eventually;

const SOON: Duration = Duration::from_secs(10);

/// A policy has two sections, of which the old sidecar knows one. It gets that one, the status says so, and the new sidecar does both.
///
/// # Errors
/// A step failed, or a promise was broken: which one is said.
pub async fn old_beside_new() -> anyhow::Result<()> {
    let stage = Stage::set().await?;
    let loopback = &stage.loopback;
    let set = json!({"name": "x-both", "value": "yes"});
    let limit = json!({"name": "all", "limit": {"requests": 1000, "per": "1h"}});
    let rule = json!({"name": "all", "headers": {"response": {"set": [set]}}, "rateLimits": [limit]});
    let old = v1::Hello { features: vec!["headers".to_owned()], version: "0.0.1".to_owned(), ..v1::Hello::default() };
    let mut sidecar = loopback.scripted_sidecar(&stage.operators[0], "web-old", old).await?;
    loopback.policy("both", &rule).await?;
    let sections = async || {
        let plan = sidecar.plan(SOON).await?;
        sidecar.ack(&plan).await?;
        let document: Plan = serde_json::from_slice(&plan.document).context("the plan")?;
        let both = document.policies.iter().find(|one| one.policy == ObjectRef::new(NAMESPACE, "both"));
        let rule = both.and_then(|both| both.rules.first()).context("the plan lacks the policy")?;
        ensure!(rule.headers.is_some() && rule.rate_limits.is_empty(), "the plan of the old sidecar of {NAME} has {rule:?}");
        Ok(())
    };
    eventually("the old sidecar gets what it knows", SOON * 2, sections).await?;
    loopback.until_programmed("both", "SidecarTooOld").await?;
    loopback.until_sets("both", "yes").await?;
    let answer = get(&loopback.url(), &http::HeaderMap::new()).await?;
    ensure!(answer.headers.contains_key("ratelimit"), "the new sidecar does not limit: {:?}", answer.headers);
    // What the old one does know is in force as ever.
    loopback.until_programmed(HEADER, "Programmed").await
}
