//! The rules of HTTP caching, without any I/O and without a clock: RFC 9111, the parts of RFC 9110 that caches need, RFC 5861 (stale
//! answers), RFC 8246 (`immutable`), RFC 9211 (`Cache-Status`), RFC 9213 (targeted fields) and RFC 9875 (groups).
//!
//! What a caller does with them, in order:
//! - [`request::Asks::of`] a request, and its [`lookup`](request::Asks::lookup): if that refuses, the request goes on, and what comes
//!   back may invalidate ([`invalidate::invalidated`]).
//! - [`vary::variant`] with the fields that the stored responses of a key name, to find those that match it.
//! - [`serve::decide`] about the one that is to be used, with what the policy lets requests ask for ([`request::Asks::heeded`]).
//! - On a hit, [`conditional::answer`]: whole, 304, parts or 416. `Age` is in the decision.
//! - On a miss, [`validate::make_whole`]; with something stored, [`validate::make_conditional`]. A request for one part goes on as it is, or
//!   with [`validate::make_conditional_in_part`]. Then the [`validate::outcome`] of what came.
//! - [`storable::storable`] says of a response whether it may be stored, with what [`meta::Meta`] and which of its fields.
//! - Of a part, [`parts::relation`] to what is stored, and [`parts::Content::joined`].
//! - [`status::Status`] for the client.

mod age;
pub(crate) mod clock;
pub(crate) mod conditional;
mod date;
mod directives;
pub(crate) mod fields;
pub(crate) mod freshness;
pub(crate) mod groups;
pub(crate) mod invalidate;
mod list;
pub(crate) mod meta;
pub(crate) mod parts;
pub(crate) mod range;
pub(crate) mod request;
pub(crate) mod serve;
pub(crate) mod settings;
pub(crate) mod status;
mod status_code;
pub(crate) mod storable;
mod targeted;
pub(crate) mod uri;
pub(crate) mod validate;
pub(crate) mod validators;
pub(crate) mod vary;

#[cfg(test)]
mod tests;
