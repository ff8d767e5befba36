//! What is known of a request before anything is decided.

use std::net::IpAddr;

use http::{HeaderMap, Method};

/// The head of a request as matches, limits and expressions see it. All borrowed: making one costs nothing.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Method.
    pub method: &'a Method,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Host that the request is for: lower case, without a port.
    pub host: &'a str,
    /// Path as it came, without the query.
    pub path: &'a str,
    /// What follows the `?`, as it came.
    pub query: Option<&'a str>,
    /// Header fields.
    pub headers: &'a HeaderMap,
    /// Address of the client, after `clientAddress` of the FetchrProxy.
    pub client: IpAddr,
}
