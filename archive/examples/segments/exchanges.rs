//! Exchanges as a shop's API has them: made from a seed, so each run has the same.

use std::fmt::Write as _;

const METHODS: [&str; 6] = ["GET", "GET", "GET", "POST", "PUT", "DELETE"];
const ROUTES: [&str; 5] = ["catalogue", "basket", "orders", "users", "search"];
const STATUSES: [u16; 10] = [200, 200, 200, 200, 200, 201, 204, 304, 404, 503];
const AGENTS: [&str; 4] = [
    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1",
    "okhttp/4.12.0",
    "python-requests/2.32.3",
];
const WORDS: [&str; 12] =
    ["red", "kettle", "wool", "lamp", "oak", "blue", "chair", "cotton", "large", "steel", "handmade", "garden"];

/// One exchange, and what it is found by.
pub(crate) struct Exchange {
    /// The record.
    pub(crate) json: String,
    /// When it was, in nanoseconds since 1970.
    pub(crate) time: i64,
    /// The status of the answer.
    pub(crate) status: u16,
    /// The route.
    pub(crate) route: &'static str,
    /// The id that traces carry.
    pub(crate) trace: String,
}

/// So many exchanges, one each 2 ms.
pub(crate) fn exchanges(seed: u64) -> impl Iterator<Item = Exchange> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0_i64..).map(move |number| exchange(&mut random, 1_790_000_000_000_000_000 + number * 2_000_000))
}

fn exchange(random: &mut fastrand::Rng, time: i64) -> Exchange {
    let (method, route, status) = (pick(random, &METHODS), pick(random, &ROUTES), pick(random, &STATUSES));
    let (trace, span) = (format!("{:032x}", random.u128(..)), format!("{:016x}", random.u64(..)));
    let (user, item) = (random.u32(1..5000), random.u32(1..20_000));
    let agent = pick(random, &AGENTS);
    let mut json = format!(
        r#"{{"time":{time},"id":"{span}","pod":"web-7f9c6d5b8-x2x4k","namespace":"shop","workload":"web","direction":"Inbound","route":"{route}","client":"10.42.{}.{}","method":"{method}","scheme":"https","host":"shop.example.com","path":"/api/v1/{route}/{item}","query":"page={}&sort=price","protocol":"HTTP/2","status":{status},"durations":{{"total":{},"upstream":{}}},"#,
        random.u8(..),
        random.u8(..),
        random.u8(1..20),
        random.u32(800..90_000),
        random.u32(500..80_000),
    );
    let _ = write!(
        json,
        r#""request":{{"headers":{{"accept":"application/json","accept-encoding":"gzip, deflate, br, zstd","accept-language":"en-GB,en;q=0.9,de;q=0.6","user-agent":"{agent}","traceparent":"00-{trace}-{span}-01","x-forwarded-for":"203.0.113.{}","authorization":"[redacted]","cookie":"[redacted]"}},"body":{{"user":{user},"item":{item},"quantity":{}}}}},"#,
        random.u8(..),
        random.u8(1..9),
    );
    let _ = write!(
        json,
        r#""response":{{"headers":{{"content-type":"application/json; charset=utf-8","cache-control":"private, max-age=0","server":"shop/4.2.1","vary":"accept-encoding, accept-language","strict-transport-security":"max-age=31536000; includeSubDomains","x-content-type-options":"nosniff","x-request-id":"{span}"}},"body":{{"items":["#,
    );
    for place in 0..random.u32(2..8) {
        let comma = if place > 0 { "," } else { "" };
        let (first, second) = (pick(random, &WORDS), pick(random, &WORDS));
        let _ = write!(
            json,
            r#"{comma}{{"id":{},"name":"{first} {second}","price":{{"amount":{}.99,"currency":"EUR"}},"available":{},"category":"{route}","image":"https://static.example.com/images/{}.webp","description":"A {second} of {first}, made to last"}}"#,
            random.u32(1..20_000),
            random.u32(1..300),
            random.bool(),
            random.u32(1..20_000),
        );
    }
    json.push_str(r#"],"page":1,"pages":12}}}"#);
    Exchange { json, time, status, route, trace }
}

fn pick<T: Copy>(random: &mut fastrand::Rng, all: &[T]) -> T {
    all[random.usize(..all.len())]
}
