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
