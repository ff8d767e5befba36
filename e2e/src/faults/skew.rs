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

/// A policy has two sections, of which the old sidecar knows one. It goes without that policy, since half of one is none, and does
/// the others; the status says so, and the new sidecar does all.
///
/// # Errors
/// A step failed, or a promise was broken: which one is said.
pub async fn old_beside_new() -> anyhow::Result<()> {
    let stage = Stage::set().await?;
    let loopback = &stage.loopback;
    let limit = json!({"name": "all", "limit": {"requests": 100_000, "per": "1s"}});
    loopback.policy("both", &json!({"name": "all", "timeouts": {"request": "30s"}, "rateLimits": [limit]})).await?;
    let features = vec!["headers".to_owned(), "timeouts".to_owned()];
    let old = v1::Hello { features, version: "0.0.1".to_owned(), ..v1::Hello::default() };
    let mut sidecar = loopback.scripted_sidecar(&stage.operators[0], "web-old", old).await?;
    loopback.header(HEADER, "changed").await?;
    let changed = async || {
        let plan = sidecar.plan(SOON).await?;
        sidecar.ack(&plan).await?;
        let document: Plan = serde_json::from_slice(&plan.document).context("the plan")?;
        let names: Vec<_> = document.policies.iter().map(|one| one.policy.clone()).collect();
        ensure!(names == [ObjectRef::new(NAMESPACE, HEADER)], "the plan of the old sidecar has {names:?}");
        ensure!(String::from_utf8_lossy(&plan.document).contains("changed"), "it has not changed yet");
        Ok(())
    };
    eventually("the old sidecar gets what it knows", SOON * 2, changed).await?;
    loopback.until_programmed("both", "SidecarTooOld").await?;
    loopback.until_programmed(HEADER, "Programmed").await?;
    loopback.until_sets(HEADER, "changed").await?;
    eventually("the new sidecar limits", SOON, async || {
        let answer = get(&loopback.url(), &http::HeaderMap::new()).await?;
        ensure!(answer.headers.contains_key("ratelimit"), "the new sidecar of {NAME} answers with {:?}", answer.headers);
        Ok(())
    })
    .await
}
