//! Types and reasons of the conditions in `status`.

/// The object is valid and is used.
pub const ACCEPTED: &str = "Accepted";
/// The policy's sections take effect at the target; False tells who won.
pub const ATTACHED: &str = "Attached";
/// Every pod that should have a sidecar has one.
pub const INJECTED: &str = "Injected";
/// Every sidecar has acknowledged the newest plan.
pub const PROGRAMMED: &str = "Programmed";
/// All of the above.
pub const READY: &str = "Ready";

/// Reasons of conditions; each is a word that scripts may compare with.
pub mod reasons {
    /// Nothing is wrong.
    pub const ACCEPTED: &str = "Accepted";
    /// Every section can take effect.
    pub const ATTACHED: &str = "Attached";
    /// Another, older proxy selects the same pods.
    pub const CONFLICTED: &str = "Conflicted";
    /// The object breaks a rule that admission would have refused.
    pub const INVALID: &str = "Invalid";
    /// The policy reaches for something outside of its namespace.
    pub const NOT_ALLOWED: &str = "NotAllowed";
    /// No section can take effect: more specific policies win them all.
    pub const OVERRIDDEN: &str = "Overridden";
    /// Some sections can't take effect: more specific policies win them.
    pub const PARTLY_OVERRIDDEN: &str = "PartlyOverridden";
    /// The target doesn't exist (yet).
    pub const TARGET_NOT_FOUND: &str = "TargetNotFound";
    /// The policy has a section that no sidecar knows.
    pub const UNSUPPORTED_FEATURE: &str = "UnsupportedFeature";
    /// Every pod has a sidecar.
    pub const INJECTED: &str = "Injected";
    /// There is no pod that it could be about.
    pub const NO_PODS: &str = "NoPods";
    /// A sidecar has no stream to the operator's leader.
    pub const NOT_CONNECTED: &str = "NotConnected";
    /// Not every sidecar has answered yet.
    pub const PENDING: &str = "Pending";
    /// The plan does not fit the ConfigMap of cold-start plans.
    pub const PLAN_TOO_LARGE: &str = "PlanTooLarge";
    /// Every sidecar has applied it.
    pub const PROGRAMMED: &str = "Programmed";
    /// The proxy is in force in all of its pods.
    pub const READY: &str = "Ready";
    /// A sidecar could not apply the plan and keeps the one before.
    pub const REJECTED: &str = "Rejected";
    /// An opted-in pod has no sidecar.
    pub const SIDECAR_MISSING: &str = "SidecarMissing";
    /// A sidecar does not know a section of the policy, which is left out of its plan.
    pub const SIDECAR_TOO_OLD: &str = "SidecarTooOld";
}
