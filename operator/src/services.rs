//! Who stands behind the Services that plans ask for: the index -> sets of Services, apart from the plans.
//!
//! Pods come and go many times a second where a large cluster rolls. A set is made anew by the same pure functions each time; what
//! stayed the same in it is shared with the set before, so that a stream sends what is new.

mod catalog;
mod one;
mod set;
mod wanted;

pub use catalog::Catalog;
pub use set::Set;
pub use wanted::Wanted;

/// Most Services of a set.
pub const MAX_SERVICES: usize = 1000;
/// Most endpoints of a set.
pub const MAX_ENDPOINTS: usize = 10_000;

#[cfg(test)]
mod tests;
