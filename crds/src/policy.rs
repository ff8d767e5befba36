//! `FetchrPolicy`: what sidecars do to requests.

pub mod cache;
pub mod circuit_breaker;
pub mod failover;
pub mod headers;
pub mod load_balancing;
pub mod matches;
pub mod rate_limits;
pub mod retry;
pub mod throttle;
pub mod timeouts;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use cache::Cache;
pub use circuit_breaker::CircuitBreaker;
pub use failover::Failover;
pub use headers::Headers;
pub use load_balancing::LoadBalancing;
pub use matches::{CEL_VARIABLES, Match};
pub use rate_limits::{RateLimit, RateLimits};
pub use retry::Retry;
pub use throttle::Throttle;
pub use timeouts::Timeouts;

use crate::{
    check::NAME,
    problems::{FieldPath, Problems},
    rule::Rule,
    schema::conditions_schema,
    target::{TargetKind, TargetRef},
};

const OUTWARD: Rule = Rule::new(
    "self.direction == 'Outbound' || self.targetRefs.all(target, target.kind != 'ExternalHost')",
    "a target of kind ExternalHost needs direction Outbound",
)
.at(".direction");
const HAS_SECTION: Rule = Rule::new(
    "has(self.headers) || has(self.rateLimits) || has(self.throttle) || has(self.cache) || has(self.timeouts) || has(self.retry) || \
     has(self.loadBalancing) || has(self.circuitBreaker) || has(self.failover)",
    "the rule does nothing: write a section such as headers, rateLimits or timeouts",
);

/// A section of a rule: what it is called, how it merges, and what makes it wrong. Each kind lives in a file of its own.
pub trait PolicyKind {
    /// Name of the section's field, and of the feature that a sidecar announces.
    const NAME: &'static str;
    /// Whether the sections of all rules that match hold together (true), or that of the best match alone (false).
    const PROTECTS: bool;

    /// Adds what is wrong with the section at `at`, beyond what its schema says.
    fn check(&self, at: &FieldPath, problems: &mut Problems);
}

/// A section that a rule has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Section {
    /// Name of its field.
    pub name: &'static str,
    /// See [`PolicyKind::PROTECTS`].
    pub protects: bool,
}

macro_rules! kinds {
    ($($field:ident: $kind:ty,)*) => {
        /// What a sidecar of this version can apply; announced in the stream's first message.
        pub const FEATURES: &[&str] = &[$(<$kind as PolicyKind>::NAME),*];

        impl PolicyRule {
            /// The sections that the rule has.
            pub fn sections(&self) -> Vec<Section> {
                let mut sections = Vec::new();
                $(if self.$field.section().is_some() {
                    sections.push(Section { name: <$kind>::NAME, protects: <$kind>::PROTECTS });
                })*
                sections
            }

            fn check_sections(&self, at: &FieldPath, problems: &mut Problems) {
                $(if let Some(section) = self.$field.section() {
                    section.check(&at.field(<$kind>::NAME), problems);
                })*
            }
        }
    };
}

kinds! {
    headers: Headers,
    rate_limits: RateLimits,
    throttle: Throttle,
    cache: Cache,
    timeouts: Timeouts,
    retry: Retry,
    load_balancing: LoadBalancing,
    circuit_breaker: CircuitBreaker,
    failover: Failover,
}

/// A field of a rule that holds a section, or none.
trait Holder {
    type Kind: PolicyKind;

    fn section(&self) -> Option<&Self::Kind>;
}

impl<K: PolicyKind> Holder for Option<K> {
    type Kind = K;

    fn section(&self) -> Option<&K> {
        self.as_ref()
    }
}

impl<T> Holder for Vec<T>
where
    Self: PolicyKind,
{
    type Kind = Self;

    fn section(&self) -> Option<&Self> {
        (!self.is_empty()).then_some(self)
    }
}

/// What sidecars do to requests: rules with matches and sections, attached to workloads, Services, proxies or namespaces.
#[derive(Clone, CustomResource, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "fetchr.sh",
    version = "v1alpha1",
    kind = "FetchrPolicy",
    plural = "fetchrpolicies",
    shortname = "fxpol",
    category = "fetchr",
    doc = "What sidecars do to requests.",
    namespaced,
    status = "FetchrPolicyStatus",
    derive = "PartialEq",
    selectable = ".spec.direction",
    printcolumn = r#"{"name":"Direction","type":"string","jsonPath":".spec.direction"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.ancestors[0].conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name":"Programmed","type":"string","jsonPath":".status.ancestors[0].conditions[?(@.type==\"Programmed\")].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[schemars(extend("x-kubernetes-validations" = [OUTWARD]))]
#[serde(rename_all = "camelCase")]
pub struct FetchrPolicySpec {
    /// What the policy is attached to. Several targets: each as if the policy were written once for it.
    #[schemars(
        length(min = 1, max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["kind", "name"])
    )]
    pub target_refs: Vec<TargetRef>,
    /// Requests that come to the application (Inbound) or that it sends (Outbound).
    #[serde(default)]
    pub direction: Direction,
    /// Rules. Of the sections that protect (`rateLimits`, `throttle`), those of every rule that matches hold; of the sections that shape
    /// (`headers`, `cache`, `timeouts`, `retry`, `loadBalancing`, `circuitBreaker`, `failover`), that of the best match.
    #[schemars(length(min = 1, max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub rules: Vec<PolicyRule>,
}

/// Which way a request goes, seen from the application.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Direction {
    /// To the application.
    #[default]
    Inbound,
    /// From the application.
    Outbound,
}

/// Whether a section acts.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Mode {
    /// Decide and act.
    #[default]
    Enforce,
    /// Decide, count and log what would have been done; change nothing.
    Shadow,
    /// As if the section were not there, but it still takes its place where the most specific one wins.
    Disabled,
}

/// Sections for the requests that match.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [HAS_SECTION]))]
#[serde(rename_all = "camelCase")]
pub struct PolicyRule {
    /// Name of the rule, unique in the policy; it appears in metrics and logs.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub name: String,
    /// The rule holds for a request that any of these matches. None: for every request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub matches: Vec<Match>,
    /// Changes to header fields. Shapes: the best match wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
    /// Limits. Protect: all that match hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub rate_limits: RateLimits,
    /// How much goes to the upstream at a time. Protects: all that match hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<Throttle>,
    /// A cache before the upstream. Shapes: the best match wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// Time limits. Shape: the best match wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// Further tries. Shape: the best match wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Which pod of a Service, or address of a name, requests go to. Shapes: the best match wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancing: Option<LoadBalancing>,
    /// When an upstream that fails is left alone. Shapes: the best match wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Where requests go when their upstream fails. Shapes: the best match wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<Failover>,
}

/// What the operator reports for a policy, in the shape of the Gateway API.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchrPolicyStatus {
    /// One entry for each target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub ancestors: Vec<Ancestor>,
}

/// How a policy stands at one target.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ancestor {
    /// The target.
    pub target_ref: TargetRef,
    /// Who reports: `fetchr.sh/operator`.
    #[schemars(length(max = 253))]
    pub controller_name: String,
    /// `Accepted`, `Attached`, `Programmed`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

impl FetchrPolicySpec {
    /// What is wrong with the policy beyond what types and patterns of the schema say: rules between fields, expressions, templates,
    /// arithmetic. The webhook refuses a policy with these words.
    pub fn check(&self) -> Problems {
        let mut problems = Problems::default();
        let at = FieldPath::root("spec");
        let outward = self.target_refs.iter().all(|target| target.kind != TargetKind::ExternalHost);
        OUTWARD.check(outward || self.direction == Direction::Outbound, &at, &mut problems);
        for (index, target) in self.target_refs.iter().enumerate() {
            target.check(&at.field("targetRefs").index(index), &mut problems);
        }
        for (index, rule) in self.rules.iter().enumerate() {
            rule.check(&at.field("rules").index(index), &mut problems);
        }
        problems
    }
}

impl FetchrPolicy {
    /// A Namespace target that isn't the policy's own, which only the operator's namespace may have. The webhook refuses it.
    pub fn check_reach(&self, operator_namespace: &str) -> Problems {
        let mut problems = Problems::default();
        let own = self.metadata.namespace.as_deref().unwrap_or_default();
        let targets = FieldPath::root("spec").field("targetRefs");
        for (index, target) in self.spec.target_refs.iter().enumerate() {
            if target.kind == TargetKind::Namespace && target.name != own && own != operator_namespace {
                problems.add(&targets.index(index).field("name"), reach_refusal(own, &target.name));
            }
        }
        problems
    }
}

/// The words for a policy that reaches for another namespace.
pub(crate) fn reach_refusal(own: &str, wanted: &str) -> String {
    format!("a policy reaches only its own namespace: write {own} instead of {wanted}, or move the policy to {wanted}")
}

impl PolicyRule {
    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        HAS_SECTION.check(!self.sections().is_empty(), at, problems);
        for (index, one) in self.matches.iter().enumerate() {
            one.check(&at.field("matches").index(index), problems);
        }
        self.check_sections(at, problems);
    }
}
