//! Header fields that a proxy must read, drop or add (RFC 9110, section 7.6; RFC 7239).

use std::{
    borrow::Cow,
    cell::Cell,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue, header};

mod forwarding;
mod present;

pub(crate) use forwarding::{Forwarding, Hop, Via};
pub(crate) use present::Present;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Names that only the sidecar itself may use.
const OWN_PREFIX: &str = "x-fetchr-";

/// Fields that `Connection` can't remove, whatever it names: they are end-to-end, and losing one changes what the request means
/// or who it comes from.
fn is_protected(name: &HeaderName) -> bool {
    matches!(*name, header::HOST | header::AUTHORIZATION | header::COOKIE | header::SET_COOKIE | header::CACHE_CONTROL)
        || name.as_str().starts_with("content-")
        || name.as_str().starts_with("x-forwarded-")
        || *name == header::FORWARDED
        || *name == header::VIA
}

/// The protocols that a request asks to switch to. `h2c` is not passed on: RFC 9113 has
/// deprecated it.
pub(crate) fn upgrade(headers: &HeaderMap, present: Present) -> Option<HeaderValue> {
    if !present.any(Present::UPGRADE) {
        return None;
    }
    let asked = list(headers, header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let protocols: Vec<&str> =
        list(headers, header::UPGRADE).filter(|protocol| asked && !protocol.eq_ignore_ascii_case("h2c")).collect();
    if protocols.is_empty() { None } else { HeaderValue::from_str(&protocols.join(", ")).ok() }
}

/// Whether an upstream that switches says what to, and that it is what it was asked for. A CONNECT asks for no protocol.
pub(crate) fn switches_as_asked(answer: &HeaderMap, asked: Option<&HeaderValue>) -> bool {
    let mut protocols = members(answer, header::UPGRADE).peekable();
    let says = protocols.peek().is_some() || asked.is_none();
    let asked = asked.map(HeaderValue::as_bytes).unwrap_or_default();
    says && protocols
        .all(|protocol| asked.split(|byte| *byte == b',').any(|member| member.trim_ascii().eq_ignore_ascii_case(protocol)))
}

/// Whether the client waits for a `100 (Continue)` before it sends the body (RFC 9110, section 10.1.1).
pub(crate) fn expects_continue(headers: &HeaderMap, present: Present) -> bool {
    present.any(Present::EXPECT)
        && headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Whether the sender closes the connection after this message (RFC 9112, section 9.6).
fn closes(headers: &HeaderMap) -> bool {
    list(headers, header::CONNECTION).any(|option| option.eq_ignore_ascii_case("close"))
}

/// Whether the connection goes on after this message (RFC 9112, section 9.3).
pub(crate) fn persists(version: http::Version, headers: &HeaderMap, present: Present) -> bool {
    if !present.any(Present::CONNECTION) {
        return version == http::Version::HTTP_11;
    }
    let keeps = || list(headers, header::CONNECTION).any(|option| option.eq_ignore_ascii_case("keep-alive"));
    !closes(headers) && (version == http::Version::HTTP_11 || keeps())
}

/// How long the sender keeps the connection while it is idle, in seconds: `Keep-Alive: timeout=5` (RFC 2068, section 19.7.1.1, which
/// servers have kept to).
pub(crate) fn keep_alive(headers: &HeaderMap) -> Option<u64> {
    list(headers, KEEP_ALIVE).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let seconds = || value.trim().trim_matches('"').parse().ok();
        name.trim().eq_ignore_ascii_case("timeout").then(seconds).flatten()
    })
}

/// How long the sender asks to wait before another request (RFC 9110, section 10.2.3).
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// Sets the fields that carry a switch of protocols to the next hop.
pub(crate) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// Removes the fields that are for this hop only, those that `Connection` names, and those that are between the sidecar and
/// itself. `TE: trailers` stays, for gRPC needs it.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap, present: Present) {
    let unlisted = Present::HOP.and(Present::TRANSFER_ENCODING).and(Present::UPGRADE);
    if present.any(Present::CONNECTION) {
        remove_connection(headers);
    }
    if present.any(unlisted) {
        for name in [KEEP_ALIVE, PROXY_CONNECTION, HTTP2_SETTINGS, header::TRANSFER_ENCODING, header::UPGRADE] {
            headers.remove(name);
        }
    }
    if present.any(Present::TE) && headers.contains_key(header::TE) {
        if trailers_wanted(headers) {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(header::TE);
        }
    }
    if present.any(Present::OWN) {
        let own: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with(OWN_PREFIX)).cloned().collect();
        own.into_iter().for_each(|name| drop(headers.remove(name)));
    }
}

/// Removes what `Connection` names of a request that the cache is about to look at: the upstream won't get it, so its answer doesn't
/// depend on it. What says how the request came stays.
pub(crate) fn remove_named(headers: &mut HeaderMap, present: Present) {
    if !present.any(Present::CONNECTION) {
        return;
    }
    let named: Vec<HeaderName> = list(headers, header::CONNECTION)
        .filter(|token| !matches!(token.as_bytes(), b"keep-alive" | b"close" | b"Upgrade" | b"upgrade"))
        .filter_map(|token| token.parse().ok())
        .filter(|name| {
            !is_protected(name) && !matches!(*name, header::CONNECTION | header::TE | header::UPGRADE | header::EXPECT)
        })
        .collect();
    named.into_iter().for_each(|name| drop(headers.remove(name)));
}

/// Removes `Connection` and what it names.
fn remove_connection(headers: &mut HeaderMap) {
    let options = headers.get(header::CONNECTION).map(HeaderValue::as_bytes);
    if matches!(options, Some(b"keep-alive" | b"close")) && is_single(headers, header::CONNECTION) {
        headers.remove(header::CONNECTION); // most of them name nothing else
        return;
    }
    let named: Vec<HeaderName> =
        list(headers, header::CONNECTION).filter_map(|token| token.parse().ok()).filter(|name| !is_protected(name)).collect();
    let trailers = trailers_wanted(headers);
    for name in named {
        headers.remove(name);
    }
    headers.remove(header::CONNECTION);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

fn is_single(headers: &HeaderMap, name: HeaderName) -> bool {
    headers.get_all(name).iter().nth(1).is_none()
}

fn trailers_wanted(headers: &HeaderMap) -> bool {
    list(headers, header::TE)
        .any(|token| token.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case("trailers")))
}

/// Whether `Via` names this proxy already.
pub(crate) fn is_loop(headers: &HeaderMap, pseudonym: &str) -> bool {
    list(headers, header::VIA).any(|hop| hop.split_ascii_whitespace().nth(1) == Some(pseudonym))
}

/// The value of `Date`, made anew once a second.
pub(crate) struct Date(Cell<(u64, [u8; 29])>);

impl Default for Date {
    fn default() -> Self {
        Self(Cell::new((0, [0; 29])))
    }
}

impl Date {
    /// The time of day (RFC 9110, section 5.6.7).
    pub(crate) fn now(&self) -> [u8; 29] {
        let now = SystemTime::now();
        let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (of, mut text) = self.0.get();
        if of != second {
            let formatted = httpdate::fmt_http_date(now);
            text.copy_from_slice(formatted.as_bytes());
            self.0.set((second, text));
        }
        text
    }
}

/// Who the client is: the peer, or what trusted peers say. Right-most address of `X-Forwarded-For` that no trusted proxy has.
pub(crate) fn client(headers: &HeaderMap, peer: IpAddr, trusts: impl Fn(IpAddr) -> bool) -> IpAddr {
    let peer = peer.to_canonical();
    if !trusts(peer) {
        return peer;
    }
    let mut client = peer;
    let hops: Vec<&[u8]> = members(headers, FORWARDED_FOR).collect();
    for hop in hops.into_iter().rev() {
        let Some(address) = str::from_utf8(hop).ok().and_then(address) else { break };
        client = address;
        if !trusts(address) {
            break;
        }
    }
    client
}

/// An address of `X-Forwarded-For`: bare, or with a port as some proxies write it.
fn address(hop: &str) -> Option<IpAddr> {
    let bare = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || hop.parse::<SocketAddr>().ok().map(|address| address.ip());
    hop.parse().ok().or_else(bare).or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

/// HTTP/2 may split `Cookie` into several lines; HTTP/1 must have one (RFC 9113, section 8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_some() {
        let lines: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
            headers.insert(header::COOKIE, joined);
        }
    }
}

/// The values of all cookies of a name, also of those that only some applications read so: there may be white space around it.
pub(crate) fn cookies<'a>(headers: &'a HeaderMap, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let pairs = headers.get_all(header::COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        (pair[..at].trim_ascii() == name).then(|| pair[at + 1..].trim_ascii())
    })
}

/// The host of an authority, without the port and the dot that may end a whole name, in lower case.
pub(crate) fn host(authority: &str) -> Cow<'_, str> {
    let host = match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) { host.to_ascii_lowercase().into() } else { host.into() }
}

/// Whether a request is a gRPC call.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The readable members of a comma-separated field without quoted strings, over all its lines.
fn list(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    members(headers, name).filter_map(|member| str::from_utf8(member).ok())
}

/// The members of such a field, whatever their bytes.
fn members(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&str, &str)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap());
        lines.iter().map(line).collect()
    }

    fn left(mut headers: HeaderMap) -> Vec<String> {
        let present = Present::of(&headers);
        remove_hop_by_hop(&mut headers, present);
        let mut names: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        names.sort();
        names
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn upgraded(headers: &HeaderMap) -> Option<HeaderValue> {
        upgrade(headers, Present::of(headers))
    }

    #[test]
    fn fields_named_by_connection_are_removed() {
        let request = headers(&[("connection", "close, X-Secret"), ("x-secret", "1"), ("keep-alive", "5"), ("accept", "*/*")]);
        assert_eq!(left(request), ["accept: */*"]);
    }

    #[test]
    fn connection_cannot_remove_end_to_end_fields() {
        let names = "host, content-length, authorization, cookie, x-forwarded-for, via";
        let request = headers(&[
            ("connection", names),
            ("host", "a"),
            ("content-length", "1"),
            ("authorization", "b"),
            ("cookie", "c"),
            ("x-forwarded-for", "1.1.1.1"),
            ("via", "1.1 x"),
        ]);
        assert_eq!(left(request).len(), 6);
    }

    #[test]
    fn fields_named_by_connection_go_before_the_cache_looks() {
        let lines = [
            ("connection", "Upgrade, te, accept-language, cookie"),
            ("upgrade", "a"),
            ("te", "b"),
            ("accept-language", "de"),
            ("cookie", "c"),
        ];
        let mut request = headers(&lines);
        let present = Present::of(&request);
        remove_named(&mut request, present);
        assert_eq!(request, headers(&[lines[0], lines[1], lines[2], lines[4]]));
    }

    #[test]
    fn te_keeps_only_trailers() {
        assert_eq!(left(headers(&[("te", "gzip, trailers")])), ["te: trailers"]);
        assert_eq!(left(headers(&[("te", "trailers"), ("connection", "TE")])), ["te: trailers"]);
        assert!(left(headers(&[("te", "gzip")])).is_empty());
    }

    #[test]
    fn upgrade_to_h2c_is_not_passed_on() {
        assert!(upgraded(&headers(&[("connection", "Upgrade"), ("upgrade", "websocket")])).is_some());
        assert!(upgraded(&headers(&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")])).is_none());
        let mixed = headers(&[("connection", "Upgrade"), ("upgrade", "H2C, websocket"), ("upgrade", "x/1")]);
        assert_eq!(upgraded(&mixed).unwrap(), "websocket, x/1");
        assert!(upgraded(&headers(&[("upgrade", "websocket")])).is_none());
    }

    #[test]
    fn loop_is_seen_in_any_line_of_via() {
        let seen = headers(&[("via", "1.1 a, 1.1 fetchr-1-in"), ("via", "2.0 b")]);
        assert!(is_loop(&seen, "fetchr-1-in"));
        assert!(!is_loop(&seen, "fetchr-1-out"));
    }

    #[test]
    fn client_is_the_rightmost_address_that_is_not_trusted() {
        let trusts = |address: IpAddr| address.to_string().starts_with("10.");
        let told = headers(&[("x-forwarded-for", "6.6.6.6, 1.2.3.4"), ("x-forwarded-for", "10.0.0.9")]);
        assert_eq!(client(&told, ip("10.0.0.1"), trusts), ip("1.2.3.4"));
        assert_eq!(client(&told, ip("9.9.9.9"), trusts), ip("9.9.9.9"), "a stranger's word counts nothing");
        let broken = headers(&[("x-forwarded-for", "6.6.6.6, nonsense")]);
        assert_eq!(client(&broken, ip("10.0.0.1"), trusts), ip("10.0.0.1"));
        assert_eq!(client(&headers(&[("x-forwarded-for", "[2001:db8::1]:443")]), ip("10.0.0.1"), trusts), ip("2001:db8::1"));
    }

    #[test]
    fn unreadable_hop_hides_nobody_and_ends_the_walk() {
        let trusts = |address: IpAddr| address.to_string().starts_with("10.");
        let told = |lines: [&[u8]; 2]| {
            let line = |value| (FORWARDED_FOR, HeaderValue::from_bytes(value).unwrap());
            let headers: HeaderMap = lines.into_iter().map(line).collect();
            client(&headers, ip("10.0.0.1"), trusts)
        };
        assert_eq!(told([b"6.6.6.6", b"\xff, 1.2.3.4"]), ip("1.2.3.4"));
        assert_eq!(told([b"6.6.6.6", b"\xff, 10.0.0.9"]), ip("10.0.0.9"));
    }

    #[test]
    fn crumbs_of_a_cookie_are_joined() {
        let mut request = headers(&[("cookie", "a=1"), ("cookie", "b=2")]);
        join_cookies(&mut request);
        assert_eq!(request["cookie"], "a=1; b=2");
        assert_eq!(request.get_all("cookie").iter().count(), 1);
    }

    #[test]
    fn own_fields_are_removed() {
        let mut request = headers(&[("x-fetchr-route", "1"), ("x-other", "2")]);
        let present = Present::of(&request);
        remove_hop_by_hop(&mut request, present);
        assert_eq!(request.len(), 1);
    }

    #[test]
    fn host_is_the_same_however_it_is_written() {
        for written in ["a.example", "A.example.", "a.example.:80"] {
            assert_eq!(host(written), "a.example");
        }
    }

    #[test]
    fn keep_alive_says_seconds_or_nothing() {
        let says = |value: &'static str| keep_alive(&headers(&[("keep-alive", value)]));
        for (value, seconds) in [("timeout=5", 5), ("Timeout = 7, max=3", 7), ("max=3, timeout=0", 0), ("timeout=\"9\"", 9)] {
            assert_eq!(says(value), Some(seconds), "{value}");
        }
        for value in ["", "5", "max=3", "timeout", "timeout=", "timeout=-1", "timeout=soon", "timeout=99999999999999999999"] {
            assert_eq!(says(value), None, "{value}");
        }
    }

    #[test]
    fn time_to_wait_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let says = |value: &'static str| retry_after(&headers(&[("retry-after", value)]), now).map(|wait| wait.as_secs());
        let cases = [
            ("7", Some(7)),
            ("0", Some(0)),
            ("99999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("soon", None),
            ("", None),
            ("-1", None),
        ];
        for (value, seconds) in cases {
            assert_eq!(says(value), seconds, "{value}");
        }
    }

    #[test]
    fn host_has_no_port_and_lower_case() {
        assert_eq!(host("A.Example:8080"), "a.example");
        assert_eq!(host("[::1]:8080"), "[::1]");
        assert_eq!(host("[::1]"), "[::1]");
        assert_eq!(host("a"), "a");
    }
}
