//! Objects that nobody would write: values of the right and of the wrong type by the definitions' own schema, from a seed.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use crds::{FetchrPolicy, FetchrProxy};
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use super::Row;
use crate::install;
use crate::namespace::{Namespace, Pod};
use crate::wait::eventually;

const METRICS_PORT: u16 = 4632;
/// How long the operator is watched when nothing changes any more.
const IDLE: std::time::Duration = std::time::Duration::from_secs(5);
/// Promised: at most one run of a loop a second for each object; with nothing to do it is far less in all.
const IDLE_RUNS: f64 = 5.0 * 5.0;
const LONG: usize = 1 << 20;
const DEEP: usize = 200;

/// Sends so many objects to the API server of a cluster with fetchr. The same seed makes the same objects.
///
/// # Errors
/// A step failed, an answer was not what is promised, or the operator suffered: which one is said.
pub async fn objects(namespace: &Namespace, count: u32, seed: u64) -> anyhow::Result<Row> {
    let operators = Namespace::named(namespace.cluster(), install::NAMESPACE).await?;
    let before = operators.ready_pods(install::OPERATOR_LABELS, 2).await?;
    let kinds = [Kind::of(&FetchrPolicy::crd())?, Kind::of(&FetchrProxy::crd())?];
    let (mut random, mut answers) = (Random(seed), BTreeMap::new());
    for number in 0..count {
        let kind = &kinds[random.below(4) / 3];
        let body = kind.object(&mut random, number);
        let (code, message) = send(namespace, kind, &body).await?;
        check(code, &message).with_context(|| format!("object {number} of seed {seed}: {}", shortened(&body)))?;
        *answers.entry(if (200..300).contains(&code) { "accepted" } else { "refused" }).or_insert(0) += 1;
    }
    let idle = suffered(&operators, &before).await?;
    let told = |what| answers.get(what).copied().unwrap_or(0);
    let seen = format!(
        "{} refused, each with a field path; {} accepted; no panic, no restart; {idle:.1} runs of loops a second after that",
        told("refused"),
        told("accepted")
    );
    Ok(Row::new("random objects by the schema", format!("{count}, seed {seed}"), seen))
}

/// A refusal has to say where.
fn check(code: u16, message: &str) -> anyhow::Result<()> {
    let refused = [400, 403, 422].contains(&code) && ["spec", "metadata"].iter().any(|root| message.contains(root));
    ensure!(refused || code == 413 || (200..300).contains(&code), "answered {code}: {message}");
    Ok(())
}

/// Runs of the operator's loops a second, with nothing to do. An error, if it restarted or panicked.
async fn suffered(operators: &Namespace, before: &[Pod]) -> anyhow::Result<f64> {
    for pod in before {
        let pod = pod.refreshed().await.context("a pod of the operator is gone")?;
        let statuses = pod.object().status.clone().unwrap_or_default().container_statuses.unwrap_or_default();
        ensure!(statuses.iter().all(|one| one.restart_count == 0), "{} restarted", pod.name());
        let log = pod.log("operator").await?;
        ensure!(!log.contains("panicked"), "{} panicked:\n{log}", pod.name());
    }
    let idle = async || {
        let before = runs(operators).await?;
        tokio::time::sleep(IDLE).await;
        let runs = runs(operators).await? - before;
        ensure!(runs <= IDLE_RUNS, "{runs} runs of loops in {IDLE:?}, with nothing to do");
        Ok(runs / IDLE.as_secs_f64())
    };
    eventually("the operator has nothing to do", std::time::Duration::from_secs(60), idle).await
}

async fn runs(operators: &Namespace) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for pod in operators.pods(install::OPERATOR_LABELS).await? {
        let page = pod.get(METRICS_PORT, "/metrics").await?;
        sum += crate::loopback::sum(&page.text(), "fetchr_reconcile_total");
    }
    Ok(sum)
}

async fn send(namespace: &Namespace, kind: &Kind, body: &Value) -> anyhow::Result<(u16, String)> {
    let path = format!("/apis/fetchr.sh/v1alpha1/namespaces/{}/{}", namespace.name(), kind.plural);
    let request = http::Request::post(path).header("content-type", "application/json").body(serde_json::to_vec(body)?)?;
    match namespace.client().request_text(request).await {
        Ok(_) => Ok((201, String::new())),
        Err(kube::Error::Api(status)) => Ok((status.code, status.message.clone())),
        Err(error) => Err(error.into()),
    }
}

fn shortened(body: &Value) -> String {
    body.to_string().chars().take(2000).collect()
}

/// A kind of object.
struct Kind {
    name: String,
    plural: String,
    spec: Value,
}

impl Kind {
    fn of(
        definition: &k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    ) -> anyhow::Result<Self> {
        let names = &definition.spec.names;
        let definition = serde_json::to_value(definition)?;
        let spec = definition.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec").context("a spec")?.clone();
        Ok(Self { name: names.kind.clone(), plural: names.plural.clone(), spec })
    }

    fn object(&self, random: &mut Random, number: u32) -> Value {
        json!({
            "apiVersion": "fetchr.sh/v1alpha1",
            "kind": self.name,
            "metadata": {"name": format!("hostile-{number}")},
            "spec": random.value(&self.spec, 0),
        })
    }
}

/// A generator of pseudo-random numbers, and of values made of them.
struct Random(u64);

impl Random {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or(0)
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len())].clone())
    }

    /// A value by its schema; one in a hundred is of no schema at all.
    fn value(&mut self, schema: &Value, depth: usize) -> Value {
        if self.below(100) == 0 {
            return self.wrong();
        }
        if let Some(value) = schema["enum"].as_array().and_then(|values| self.pick(values)) {
            return value;
        }
        match schema["type"].as_str() {
            Some("object") => self.object(schema, depth),
            Some("array") => {
                let count = [0, 1, 1, 1, 2, 3][self.below(6)];
                (0..count).map(|_| self.value(&schema["items"], depth + 1)).collect()
            }
            Some("string") => self.text(schema),
            Some("integer" | "number") => self.number(schema),
            Some("boolean") => json!(self.below(2) == 0),
            _ => self.wrong(),
        }
    }

    fn object(&mut self, schema: &Value, depth: usize) -> Value {
        let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut object = Map::new();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            // What is required is left out now and then, and what is not is there less often the deeper it lies.
            let is_in = if required.contains(&name.as_str()) { self.below(50) > 0 } else { self.below(2 + depth) == 0 };
            if is_in {
                object.insert(name.clone(), self.value(property, depth + 1));
            }
        }
        if schema["additionalProperties"].is_object() {
            for _ in 0..self.below(3) {
                let name = self.strange();
                object.insert(name, self.value(&schema["additionalProperties"], depth + 1));
            }
        }
        Value::Object(object)
    }

    fn text(&mut self, schema: &Value) -> Value {
        const PLAIN: &[&str] = &[
            "web",
            "default",
            "a",
            "10s",
            "1m",
            "0s",
            "500ms",
            "/",
            "/a/{id}",
            "^/a/[0-9]+$",
            "GET",
            "x-a",
            "example.com",
            "*.example.com",
            "80",
            "10.0.0.0/8",
            "64Mi",
            "100m",
            "http://127.0.0.1:8080",
            "request.path == '/'",
            "app",
            "apps",
            "Deployment",
            "FetchrProxy",
            "1",
            "50%",
        ];
        match (schema["default"].as_str(), self.below(8)) {
            (_, 0) => json!(self.strange()),
            (Some(default), _) => json!(default),
            (None, _) => json!(self.pick(PLAIN)),
        }
    }

    fn strange(&mut self) -> String {
        const STRANGE: &[&str] = &[
            "",
            " ",
            "\u{0}",
            "\r\nx: y",
            "\u{202e}abc",
            "𝕏🏴\u{200d}☠️",
            "ﬁ",
            "../../etc",
            "(a+)+$",
            "[",
            "(?<x>",
            "{",
            "{{",
            "%zz",
            "%",
            "true",
            "null",
            "-1",
            "1e999",
            "99999999999999999999s",
            "-5s",
            "1h1h",
            "${HOME}",
            "'; drop",
            "\u{feff}a",
            "a\tb",
            "*.*",
            "**",
            "size([1,2,3].map(x, [1,2,3].map(y, [1,2,3])))",
            "request.headers['a'].matches('(a*)*b')",
            "1 +",
            "x(",
        ];
        match self.below(60) {
            0 => "x".repeat(LONG),
            1 => "a/".repeat(1000),
            2 => "(".repeat(1000),
            _ => self.pick(STRANGE).unwrap_or_default().to_owned(),
        }
    }

    fn number(&mut self, schema: &Value) -> Value {
        let mut candidates =
            vec![json!(0), json!(1), json!(-1), json!(i64::MAX), json!(i64::MIN), json!(4_294_967_296_u64), json!(0.5)];
        let bounds = [&schema["minimum"], &schema["maximum"], &schema["default"]];
        for bound in bounds.into_iter().filter(|bound| bound.is_number()) {
            candidates.extend([bound.clone(), bound.clone(), bound.clone(), bound.clone()]);
        }
        json!(self.pick(&candidates))
    }

    /// Of a type that is wrong in most places.
    fn wrong(&mut self) -> Value {
        match self.below(8) {
            0 => Value::Null,
            1 => json!(self.strange()),
            2 => json!(true),
            3 => json!(-7),
            4 => json!([[], {}, null]),
            5 => (0..DEEP).fold(json!("deep"), |inner, _| json!([inner])),
            6 => (0..DEEP).fold(json!("deep"), |inner, _| json!({"matches": inner})),
            _ => json!({"unknown": self.strange()}),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_makes_the_same_objects_and_another_one_others() {
        let kind = Kind::of(&FetchrPolicy::crd()).unwrap();
        let make = |seed| (0..50).map(|number| kind.object(&mut Random(seed + u64::from(number)), number)).collect::<Vec<_>>();
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
    }

    #[test]
    fn objects_reach_deep_into_the_schema() {
        let (kind, mut random) = (Kind::of(&FetchrPolicy::crd()).unwrap(), Random(7));
        let text: String = (0..300).map(|number| kind.object(&mut random, number).to_string()).collect();
        for name in ["rateLimits", "headers", "timeouts", "matches", "targetRefs"] {
            assert!(text.contains(name), "{name}");
        }
    }

    #[test]
    fn refusal_without_a_path_is_an_error() {
        assert!(check(422, "spec.rules[0]: Required value").is_ok() && check(201, "").is_ok());
        assert!(check(400, "no").is_err() && check(500, "spec.rules").is_err());
    }
}
