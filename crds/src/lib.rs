//! The two resources of fetchr, `FetchrProxy` and `FetchrPolicy`, their rules, and the plan compiled from them.
//!
//! Nothing here knows a client, a clock or a runtime: the operator, the sidecar and the command line all call the same
//! functions, so that a document means the same on a laptop and in a cluster.

pub mod check;
pub mod conditions;
pub mod document;
pub mod plan;
pub mod policy;
pub mod problems;
pub mod proxy;
mod rule;
pub mod scalar;
pub mod schema;
pub mod target;
pub mod validate;

pub use policy::FetchrPolicy;
pub use proxy::FetchrProxy;

/// API group of both resources.
pub const GROUP: &str = "fetchr.sh";
/// Version served and stored.
pub const VERSION: &str = "v1alpha1";
/// Name under which the operator reports in `status.ancestors`.
pub const CONTROLLER: &str = "fetchr.sh/operator";
