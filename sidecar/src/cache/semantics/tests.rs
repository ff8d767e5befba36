//! One test for each requirement of an RFC that concerns a cache, named by its section; tables where several are of a kind.

mod ages;
mod control;
mod groups;
mod lifetimes;
mod preconditions;
mod properties;
mod ranges;
mod serving;
mod status;
mod statuses;
mod storing;
mod targeted;
mod updates;
mod validation;
mod variants;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::{
    clock::{Millis, Now},
    meta::Meta,
    request::{Asks, Control},
    serve::{Decision, Origin, Why, decide},
    settings::Settings,
    storable::{NotStored, Received, Storable, storable},
    uri::Target,
};

/// `Date` of most responses here.
const DATE: &str = "Sat, 28 Nov 2026 12:00:00 GMT";

/// The moment that [`DATE`] says, and the monotonic clock at it.
const T0: Now = Now { wall: 1_795_867_200_000, mono: 5_000_000 };

const TARGET: Target<'_> = Target { scheme: "http", authority: "shop.example", path_and_query: "/a?b=1" };

/// Lines of a head.
type Lines<'a> = &'a [(&'a str, &'a str)];

/// Later, with both clocks steady.
fn after(millis: Millis) -> Now {
    Now { wall: T0.wall + i64::try_from(millis).unwrap(), mono: T0.mono + millis }
}

fn fields(lines: Lines<'_>) -> HeaderMap {
    let line = |(name, value): &(&str, &str)| (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
    let mut all = HeaderMap::new();
    for (name, value) in lines.iter().map(line) {
        all.append(name, value);
    }
    all
}

/// A request and its response.
#[derive(Clone, Debug)]
struct Exchange {
    method: Method,
    request: HeaderMap,
    content: bool,
    status: u16,
    response: HeaderMap,
    settings: Settings,
    sent: Now,
    at: Now,
    random: u32,
}

impl Exchange {
    /// A GET that is answered at once by a 200 with these fields and a `Date`.
    fn get(response: Lines<'_>) -> Self {
        Self {
            method: Method::GET,
            request: HeaderMap::new(),
            content: false,
            status: 200,
            response: fields(&[&[("date", DATE)], response].concat()),
            settings: Settings::default(),
            sent: T0,
            at: T0,
            random: 0,
        }
    }

    /// With this `Cache-Control`.
    fn control(value: &str) -> Self {
        Self::get(&[("cache-control", value)])
    }

    fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    fn method(self, method: Method) -> Self {
        Self { method, ..self }
    }

    fn asking(self, request: Lines<'_>) -> Self {
        Self { request: fields(request), ..self }
    }

    fn with(mut self, response: Lines<'_>) -> Self {
        for (name, value) in response {
            self.response.append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
        }
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.response.remove(name);
        self
    }

    fn set(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    fn asks(&self) -> Asks {
        Asks::of(&self.method, &self.request, self.content)
    }

    fn judged(&self) -> Result<Storable, NotStored> {
        let status = StatusCode::from_u16(self.status).unwrap();
        let asks = self.asks();
        let received = Received { asks: &asks, target: TARGET, status, headers: &self.response, sent: self.sent, at: self.at };
        storable(&received, &self.settings, self.random)
    }

    #[track_caller]
    fn stored(&self) -> Storable {
        self.judged().unwrap_or_else(|why| panic!("not stored: {why:?} {self:?}"))
    }

    #[track_caller]
    fn meta(&self) -> Meta {
        self.stored().meta
    }

    #[track_caller]
    fn refused(&self) -> NotStored {
        self.judged().map(|stored| stored.meta).expect_err("it is stored")
    }
}

/// What is decided for a stored response and a request with this `Cache-Control`.
fn asked(meta: &Meta, control: &str, now: Now) -> Decision {
    decide(meta, &wants(control), now, Origin::Up)
}

fn wants(control: &str) -> Control {
    let headers = if control.is_empty() { HeaderMap::new() } else { fields(&[("cache-control", control)]) };
    Asks::of(&Method::GET, &headers, false).control
}

/// Seconds of freshness, and who gave them.
fn lifetime(exchange: &Exchange) -> Millis {
    exchange.meta().lifetime / 1000
}

fn why(meta: &Meta, control: &str, now: Now) -> Why {
    asked(meta, control, now).why
}

/// A response without a lifetime is refused, or stored for validation only: never fresh.
fn is_never_fresh(exchange: &Exchange) -> bool {
    exchange.judged().is_err() || lifetime(exchange) == 0
}
