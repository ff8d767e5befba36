//! Who may use the admin port. It is on loopback, but the application next door is not trusted, nor are web pages that a browser
//! on a laptop shows.

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

/// The token that every request has to carry.
#[derive(Clone)]
pub(super) struct Token(Arc<str>);

impl Token {
    pub(super) fn new(token: &str) -> Self {
        Self(token.into())
    }
}

/// Refuses requests for another host (a web page whose name was made to resolve to loopback, RFC 9110 7.4) and those without the
/// token.
pub(super) async fn guard(State(token): State<Token>, request: Request, next: Next) -> Response {
    if !is_for_loopback(request.headers()) {
        return (StatusCode::MISDIRECTED_REQUEST, "the admin port answers for localhost only\n").into_response();
    }
    if !carries(&token, request.headers()) {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        let hint = "a token is needed: Authorization: Bearer $(cat $FETCHR_STATE_DIR/admin-token)\n";
        return (StatusCode::UNAUTHORIZED, challenge, hint).into_response();
    }
    next.run(request).await
}

fn is_for_loopback(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let authority = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    authority.is_some_and(|authority| {
        let host = authority.host();
        host.eq_ignore_ascii_case("localhost") || matches!(host, "127.0.0.1" | "[::1]")
    })
}

fn carries(token: &Token, headers: &HeaderMap) -> bool {
    let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
    let Some((scheme, given)) = given.split_at_checked("Bearer ".len()) else { return false };
    scheme.eq_ignore_ascii_case(b"Bearer ") && verify_slices_are_equal(given, token.0.as_bytes()).is_ok()
}
