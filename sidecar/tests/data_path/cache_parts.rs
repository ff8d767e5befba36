//! Parts of answers (206) that the cache keeps, before an origin that understands ranges.

use std::sync::{Arc, Mutex};

use crds::proxy::FetchrProxySpec;
use tokio::{io::AsyncWriteExt, sync::Notify};

use crate::support::{Origin, Proxy, Response, eventually, field, read_head};

const ALL: &str = r#"[{"name": "all", "cache": {"tags": {"header": "xkey"}}}]"#;
const LENGTH: usize = 1000;

/// What the origin has.
#[derive(Clone, Debug)]
pub(crate) struct Film {
    pub(crate) version: u8,
    pub(crate) length: usize,
    /// Fields of all answers but the validator.
    pub(crate) fields: String,
    /// The validator; `V` stands for the version.
    pub(crate) validator: &'static str,
    /// Whether it answers 304.
    pub(crate) validates: bool,
}

/// An origin with a film, and a proxy before it.
pub(crate) struct Site {
    pub(crate) proxy: Proxy,
    film: Arc<Mutex<Film>>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Film {
    pub(crate) fn new() -> Self {
        let fields = "cache-control: max-age=600\r\ncontent-type: video/x\r\n".to_owned();
        Self { version: 1, length: LENGTH, fields, validator: "etag: \"V\"", validates: true }
    }

    fn byte(&self, at: usize) -> u8 {
        (at * 31 + usize::from(self.version) * 101 + at / 256) as u8
    }

    fn bytes(&self, first: usize, last: usize) -> Vec<u8> {
        (first..=last.min(self.length - 1)).map(|at| self.byte(at)).collect()
    }

    fn tag(&self) -> String {
        format!("\"{}\"", self.version)
    }

    /// First and last byte that a `Range` with a single one asks for.
    fn asked(&self, range: &str) -> Option<(usize, usize)> {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        let end = self.length - 1;
        Some(match (first.parse().ok(), last.parse::<usize>().ok()) {
            (Some(first), last) => (first, last.unwrap_or(end).min(end)),
            (None, Some(last)) => (self.length - last.min(self.length), end),
            (None, None) => return None,
        })
    }

    fn answer(&self, head: &str) -> Vec<u8> {
        let fields = format!("{}{}\r\n", self.fields, self.validator.replace('V', &self.version.to_string()));
        if self.validates && field(head, "if-none-match").is_some_and(|tag| tag == self.tag()) {
            return format!("HTTP/1.1 304 Not Modified\r\n{fields}\r\n").into_bytes();
        }
        let same = field(head, "if-range").is_none_or(|tag| tag == self.tag());
        let range = field(head, "range").filter(|_| same).and_then(|range| self.asked(range));
        let (answer, body) = match range {
            Some((first, _)) if first >= self.length => {
                let range = format!("content-range: bytes */{}", self.length);
                (format!("HTTP/1.1 416 Range Not Satisfiable\r\n{range}\r\ncontent-length: 0\r\n\r\n"), Vec::new())
            }
            Some((first, last)) => {
                let body = self.bytes(first, last);
                let range = format!("content-range: bytes {first}-{last}/{}", self.length);
                let length = body.len();
                (format!("HTTP/1.1 206 Partial Content\r\n{fields}{range}\r\ncontent-length: {length}\r\n\r\n"), body)
            }
            None => {
                (format!("HTTP/1.1 200 OK\r\n{fields}content-length: {}\r\n\r\n", self.length), self.bytes(0, self.length - 1))
            }
        };
        let mut answer = answer.into_bytes();
        if !head.starts_with("HEAD") {
            answer.extend(body);
        }
        answer
    }
}

impl Site {
    async fn start() -> Self {
        Self::with(ALL, Film::new()).await
    }

    async fn with(rules: &str, film: Film) -> Self {
        Self::in_pod(rules, film, |_| {}).await
    }

    /// With other settings.
    pub(crate) async fn in_pod(rules: &str, film: Film, change: impl FnOnce(&mut FetchrProxySpec)) -> Self {
        let (film, heads) = (Arc::new(Mutex::new(film)), Arc::new(Mutex::new(Vec::new())));
        let (shown, noted) = (Arc::clone(&film), Arc::clone(&heads));
        let origin = Origin::scripted(move |mut stream, _| {
            let (shown, noted) = (Arc::clone(&shown), Arc::clone(&noted));
            async move {
                while let Some(head) = read_head(&mut stream).await {
                    let answer = shown.lock().unwrap().answer(&head);
                    noted.lock().unwrap().push(head);
                    stream.write_all(&answer).await.unwrap();
                }
            }
        })
        .await;
        let proxy = Proxy::with(&format!("http://{}", origin.address), change);
        proxy.apply(rules);
        Self { proxy, film, heads }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Film)) {
        change(&mut self.film.lock().unwrap());
    }

    pub(crate) fn requests(&self) -> usize {
        self.heads.lock().unwrap().len()
    }

    fn last(&self) -> String {
        self.heads.lock().unwrap().last().cloned().unwrap_or_default()
    }

    /// Asks for a range; "" for the whole. The answer has the right bytes of what the origin has now, whatever else it says.
    pub(crate) async fn get(&self, range: &str, fields: &str) -> Response {
        let response = self.ask(range, fields).await;
        self.check(range, &response);
        response
    }

    async fn ask(&self, range: &str, fields: &str) -> Response {
        let range = if range.is_empty() { String::new() } else { format!("range: bytes={range}\r\n") };
        self.proxy.ask(&format!("GET /film HTTP/1.1\r\nhost: a\r\n{range}{fields}\r\n")).await
    }

    fn check(&self, range: &str, response: &Response) {
        let film = self.film.lock().unwrap().clone();
        match response.status {
            200 => assert_eq!(response.body, film.bytes(0, film.length - 1), "{range}: {}", response.head),
            206 => {
                let (first, last) = film.asked(&format!("bytes={range}")).unwrap();
                let told = format!("bytes {first}-{last}/{}", film.length);
                assert_eq!((response.field("content-range"), &response.body), (&*told, &film.bytes(first, last)), "{range}");
                assert_eq!(response.field("content-length"), (last - first + 1).to_string());
                assert_eq!(response.head.matches("content-range").count(), 1, "{}", response.head);
            }
            416 => assert_eq!(response.field("content-range"), format!("bytes */{}", film.length)),
            _ => panic!("{range}: {}", response.head),
        }
    }

    pub(crate) fn parts(&self, event: &str) -> f64 {
        self.proxy.metric(&format!("fetchr_cache_parts_total{{event=\"{event}\"}}"))
    }
}

/// How a request was handled, without what depends on time.
fn handled(response: &Response) -> String {
    let status = response.field("cache-status");
    let parts: Vec<_> = status.split("; ").filter(|part| !part.starts_with("ttl=")).collect();
    format!("{} {}", response.status, parts.join("; "))
}

#[tokio::test]
async fn part_that_is_kept_answers_for_what_lies_in_it() {
    let site = Site::start().await;
    assert_eq!(handled(&site.get("100-299", "").await), "206 fetchr; fwd=uri-miss; stored");
    for within in ["100-299", "150-160", "299-299", "-701"] {
        let response = site.ask(within, "").await;
        if within == "-701" {
            assert_eq!(handled(&response), "206 fetchr; fwd=partial; stored", "not all of a suffix");
        } else {
            assert_eq!(handled(&response), "206 fetchr; hit", "{within}");
            assert_eq!((response.field("etag"), response.field("content-type")), ("\"1\"", "video/x"));
        }
        site.check(within, &response);
    }
    assert_eq!(site.requests(), 2);
    for kept in ["-10", "990-", "-701", "950-2000", "100-", "1000-", "2000-3000"] {
        let response = site.get(kept, "").await;
        assert_eq!(response.status, if kept.starts_with(['1', '2']) && kept != "100-" { 416 } else { 206 }, "{kept}");
        assert!(handled(&response).ends_with("fetchr; hit"), "{kept}: the length is known");
    }
    assert_eq!(site.requests(), 2);
    let film = site.film.lock().unwrap().clone();
    let several = site.ask("200-209,900-909", "").await;
    assert!(several.field("content-type").starts_with("multipart/byteranges"), "{}", several.head);
    let holds = |bytes: &[u8]| several.body.windows(bytes.len()).any(|window| window == bytes);
    assert!(holds(&film.bytes(200, 209)) && holds(&film.bytes(900, 909)));
    assert_eq!(site.ask("100-199", "if-none-match: \"1\"\r\n").await.status, 304);
    assert_eq!(site.requests(), 2);
    let mut client = site.proxy.client().await;
    client.send("HEAD /film HTTP/1.1\r\nhost: a\r\nrange: bytes=0-9\r\n\r\n").await;
    let head = client.head_response().await;
    assert_eq!((handled(&head), head.field("content-length")), ("200 fetchr; hit".to_owned(), "1000"));
    assert!(!head.has("content-range"), "{}", head.head);
}

#[tokio::test]
async fn parts_are_joined_until_they_are_the_whole() {
    let site = Site::start().await;
    for range in ["0-299", "700-999", "500-599"] {
        site.get(range, "").await;
    }
    assert_eq!(site.parts("first") + site.parts("joined"), 3.0);
    // For what overlaps, the origin is asked for all that the client wants.
    assert_eq!(handled(&site.get("250-550", "").await), "206 fetchr; fwd=partial; stored");
    assert_eq!(field(&site.last(), "range"), Some("bytes=250-550"));
    assert_eq!(handled(&site.get("0-599", "").await), "206 fetchr; hit");
    assert_eq!(site.parts("completed"), 0.0);
    site.get("550-750", "").await;
    assert_eq!((site.requests(), site.parts("completed")), (5, 1.0));
    let whole = site.get("", "").await;
    assert_eq!((handled(&whole), whole.field("content-length")), ("200 fetchr; hit".to_owned(), "1000"));
    assert!(!whole.has("content-range"), "{}", whole.head);
    assert_eq!(handled(&site.get("-1", "").await), "206 fetchr; hit");
    assert_eq!(site.requests(), 5);
    assert_eq!(site.proxy.metric("fetchr_cache_objects"), 1.0);
}

#[tokio::test]
async fn part_that_is_all_there_is_makes_the_whole_answer() {
    let site = Site::start().await;
    assert_eq!(site.get("0-", "").await.status, 206);
    assert_eq!(handled(&site.get("", "").await), "200 fetchr; hit");
    assert_eq!(site.requests(), 1);
}

#[tokio::test]
async fn whole_is_asked_for_as_a_whole_and_takes_the_place_of_parts() {
    let site = Site::start().await;
    site.get("0-499", "").await;
    let whole = site.get("", "").await;
    assert_eq!(handled(&whole), "200 fetchr; fwd=partial; stored");
    assert!(!site.last().contains("range"), "{}", site.last());
    assert_eq!(handled(&site.get("600-699", "").await), "206 fetchr; hit");
    assert_eq!(site.ask("", "cache-control: only-if-cached\r\n").await.status, 200);
    assert_eq!(site.requests(), 2);
}

#[tokio::test]
async fn only_if_cached_is_no_answer_for_what_is_kept_in_part() {
    let site = Site::start().await;
    site.get("0-499", "").await;
    for (range, status) in [("", 504), ("400-500", 504), ("0-499", 206)] {
        assert_eq!(site.ask(range, "cache-control: only-if-cached\r\n").await.status, status, "{range}");
    }
    assert_eq!(site.requests(), 1);
}

#[tokio::test]
async fn another_validator_throws_the_old_parts_away() {
    let site = Site::start().await;
    site.get("0-299", "").await;
    site.change(|film| film.version = 2);
    // Its bytes are those of its time as long as it is fresh.
    assert_eq!(site.ask("0-9", "").await.field("etag"), "\"1\"");
    assert_eq!(handled(&site.get("200-399", "").await), "206 fetchr; fwd=partial; stored");
    assert_eq!(site.parts("replaced"), 1.0);
    assert_eq!(handled(&site.get("250-260", "").await), "206 fetchr; hit");
    assert_eq!(handled(&site.get("0-299", "").await), "206 fetchr; fwd=partial; stored");
    site.change(|film| (film.version, film.length) = (3, 2000));
    site.get("300-1999", "").await;
    assert_eq!(handled(&site.get("0-399", "").await), "206 fetchr; fwd=partial; stored");
    assert_eq!(handled(&site.get("", "").await), "200 fetchr; hit");
}

#[tokio::test]
async fn stale_part_is_validated_and_goes_on_answering() {
    let fields = "cache-control: max-age=0\r\n".to_owned();
    let site = Site::with(ALL, Film { fields, ..Film::new() }).await;
    site.get("0-299", "").await;
    assert_eq!(handled(&site.get("100-199", "").await), "206 fetchr; fwd=stale; fwd-status=304; detail=Expired");
    let asked = site.last();
    assert_eq!((field(&asked, "if-none-match"), field(&asked, "range")), (Some("\"1\""), Some("bytes=100-199")));
    // From now on it is fresh.
    site.change(|film| film.fields = "cache-control: max-age=600\r\nx-new: 1\r\n".to_owned());
    site.get("0-9", "").await;
    let requests = site.requests();
    let fresh = site.get("200-299", "").await;
    assert_eq!((handled(&fresh), fresh.field("x-new")), ("206 fetchr; hit".to_owned(), "1"));
    assert_eq!(site.requests(), requests);
    // What lies beyond is still missing.
    assert_eq!(handled(&site.get("200-300", "").await), "206 fetchr; fwd=partial; stored");
}

#[tokio::test]
async fn stale_part_that_has_changed_is_replaced_by_the_part_of_the_new_one() {
    let fields = "cache-control: max-age=0\r\n".to_owned();
    let site = Site::with(ALL, Film { fields, ..Film::new() }).await;
    site.get("0-299", "").await;
    site.change(|film| film.version = 2);
    assert_eq!(handled(&site.get("100-199", "").await), "206 fetchr; fwd=stale; stored; detail=Expired");
    site.change(|film| film.version = 3);
    // Who has the rest of the old one gets all of the new one.
    assert_eq!(site.get("100-199", "if-range: \"2\"\r\n").await.status, 200);
    assert_eq!(site.get("100-199", "").await.status, 206);
}

#[tokio::test]
async fn stale_part_stands_in_for_an_origin_that_fails_and_while_another_one_is_fetched() {
    let rules = r#"[{"name": "all", "cache": {"stale": {"whileRevalidate": "1h"}}}]"#;
    let fields = "cache-control: max-age=0\r\n".to_owned();
    let site = Site::with(rules, Film { fields, ..Film::new() }).await;
    site.get("0-299", "").await;
    site.change(|film| film.version = 2);
    let stale = site.ask("100-199", "").await;
    assert_eq!((handled(&stale), stale.field("etag")), ("206 fetchr; hit; detail=StaleWhileRevalidate".to_owned(), "\"1\""));
    eventually("the part of the new one", || site.parts("replaced") == 1.0).await;
    assert_eq!(field(&site.last(), "range"), Some("bytes=100-199"), "no more than a part is asked for");
    let newer = site.get("100-199", "").await;
    assert_eq!(newer.field("etag"), "\"2\"");
}

#[tokio::test]
async fn range_of_what_is_stale_as_a_whole_is_asked_for_as_a_range() {
    let fields = "cache-control: max-age=0\r\n".to_owned();
    let site = Site::with(ALL, Film { fields, ..Film::new() }).await;
    site.get("", "").await;
    assert_eq!(handled(&site.get("5-9", "").await), "206 fetchr; fwd=stale; fwd-status=304; detail=Expired");
    // An origin that doesn't say 304 confirms the rest by its validator.
    site.change(|film| (film.validates, film.fields) = (false, "cache-control: max-age=600\r\n".to_owned()));
    assert_eq!(handled(&site.get("5-9", "").await), "206 fetchr; fwd=stale; stored; detail=Expired");
    assert_eq!(handled(&site.get("", "").await), "200 fetchr; hit");
}

#[tokio::test]
async fn parts_that_could_not_be_joined_are_passed_on_alone() {
    for (film, fields) in [
        (Film { validator: "etag: W/\"V\"", ..Film::new() }, ""),
        (Film { validator: "x-none: V", ..Film::new() }, ""),
        // By `If-Range` it may lack fields of its head.
        (Film::new(), "if-range: \"1\"\r\n"),
    ] {
        let site = Site::with(ALL, film).await;
        for number in 1..=2 {
            assert_eq!(handled(&site.get("0-9", fields).await), "206 fetchr; fwd=uri-miss; detail=Partial");
            assert_eq!(site.requests(), number);
        }
        assert_eq!(site.proxy.metric("fetchr_cache_objects"), 0.0);
    }
    let site = Site::start().await;
    site.get("0-9", "").await;
    assert_eq!(handled(&site.get("10-19", "if-range: \"1\"\r\n").await), "206 fetchr; fwd=partial; stored");
    assert_eq!(handled(&site.get("0-19", "if-range: \"1\"\r\n").await), "206 fetchr; hit");
    assert_eq!(site.get("0-19", "if-range: \"0\"\r\n").await.status, 200, "who has another one needs the whole");
}

#[tokio::test]
async fn several_parts_in_one_answer_are_passed_on_and_not_kept() {
    let parts = "HTTP/1.1 206 Partial Content\r\ncache-control: max-age=600\r\netag: \"1\"\r\n\
                 content-type: multipart/byteranges; boundary=b\r\ncontent-length: 4\r\n\r\n--b-";
    let origin = Origin::answering(parts).await;
    let proxy = Proxy::before(origin.address);
    proxy.apply(ALL);
    for range in ["0-1,500-501", "0-1"] {
        let response = proxy.ask(&format!("GET / HTTP/1.1\r\nhost: a\r\nrange: bytes={range}\r\n\r\n")).await;
        assert_eq!((response.status, response.text()), (206, "--b-"));
        assert!(response.field("cache-status").ends_with("detail=Partial"), "{}", response.head);
    }
    assert_eq!(proxy.metric("fetchr_cache_objects"), 0.0);
}

#[tokio::test]
async fn part_that_is_not_as_its_head_says_is_never_kept() {
    let head = "HTTP/1.1 206 Partial Content\r\ncache-control: max-age=600\r\netag: \"1\"\r\ncontent-range: bytes 0-9/100\r\n";
    for rest in [
        "content-length: 10\r\n\r\nshort",
        "content-length: 5\r\n\r\nshort",
        "transfer-encoding: chunked\r\n\r\n5\r\nshort\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n5\r\nshort\r\n",
        "transfer-encoding: chunked\r\n\r\nb\r\n0123456789a\r\n0\r\n\r\n",
        "connection: close\r\n\r\nshort",
    ] {
        let answer = format!("{head}{rest}");
        let origin = Origin::scripted(move |mut stream, _| {
            let answer = answer.clone();
            async move {
                if read_head(&mut stream).await.is_some() {
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        let proxy = Proxy::before(origin.address);
        proxy.apply(ALL);
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\nrange: bytes=0-9\r\nconnection: close\r\n\r\n").await;
        client.rest().await;
        eventually("its end", || proxy.metric("fetchr_cache_fills") == 0.0).await;
        assert_eq!(proxy.metric("fetchr_cache_objects"), 0.0, "{rest:?}");
    }
}

#[tokio::test]
async fn variants_have_parts_of_their_own() {
    let fields = "cache-control: max-age=600\r\nvary: accept-language\r\n".to_owned();
    let site = Site::with(ALL, Film { fields, ..Film::new() }).await;
    for (language, range, expected) in [
        ("de", "0-499", "206 fetchr; fwd=uri-miss; stored"),
        ("en", "0-499", "206 fetchr; fwd=vary-miss; stored"),
        ("de", "500-999", "206 fetchr; fwd=partial; stored"),
        ("de", "", "200 fetchr; hit"),
        ("en", "0-499", "206 fetchr; hit"),
        ("en", "500-999", "206 fetchr; fwd=partial; stored"),
    ] {
        let response = site.get(range, &format!("accept-language: {language}\r\n")).await;
        assert_eq!(handled(&response), expected, "{language} {range}");
    }
    assert_eq!(site.proxy.metric("fetchr_cache_objects"), 2.0);
}

#[tokio::test]
async fn purges_take_parts() {
    let fields = "cache-control: max-age=600\r\nxkey: news\r\n".to_owned();
    for (purge, expected) in [
        (r#"{"tag": "news"}"#, "206 fetchr; fwd=uri-miss; stored"),
        (r#"{"url": "http://a/film"}"#, "206 fetchr; fwd=uri-miss; stored"),
        (r#"{"tag": "news", "soft": true}"#, "206 fetchr; fwd=stale; fwd-status=304; detail=Expired"),
    ] {
        let site = Site::with(ALL, Film { fields: fields.clone(), ..Film::new() }).await;
        site.get("0-99", "").await;
        let joined = site.get("100-199", "").await;
        assert!(!joined.has("xkey"), "{}", joined.head);
        assert_eq!(site.parts("joined"), 1.0);
        site.proxy.purges.purge(&serde_json::from_str(purge).unwrap(), std::time::Duration::MAX).await.unwrap();
        assert_eq!(handled(&site.get("0-99", "").await), expected, "{purge}");
        // Of what a hard one took, nothing is joined with what comes later.
        let rest = handled(&site.get("100-199", "").await);
        assert_eq!(rest.contains("hit"), purge.contains("soft"), "{purge}: {rest}");
    }
    let site = Site::start().await;
    site.get("0-99", "").await;
    site.proxy.ask("POST /film HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(handled(&site.get("0-99", "").await), "206 fetchr; fwd=uri-miss; stored");
}

#[tokio::test]
async fn parts_of_an_answer_are_bounded_by_the_size_of_the_largest_object() {
    let rules = r#"[{"name": "all", "cache": {"maxObjectSize": "300"}}]"#;
    let site = Site::with(rules, Film::new()).await;
    assert_eq!(handled(&site.get("0-", "").await), "206 fetchr; fwd=uri-miss; detail=TooLarge");
    for range in ["0-99", "100-199", "800-899", "900-999"] {
        assert_eq!(site.get(range, "").await.status, 206);
    }
    assert_eq!(site.parts("cut"), 1.0);
    assert!(site.proxy.metric("fetchr_cache_size_bytes") < 1500.0);
    let requests = site.requests();
    for kept in ["800-999", "100-199"] {
        assert_eq!(handled(&site.get(kept, "").await), "206 fetchr; hit", "what is nearest stays: {kept}");
    }
    assert_eq!(site.requests(), requests);
    assert_eq!(handled(&site.get("0-99", "").await), "206 fetchr; fwd=partial; stored");
    assert_eq!(handled(&site.get("", "").await), "200 fetchr; fwd=partial; detail=TooLarge");
    assert_eq!(handled(&site.get("100-199", "").await), "206 fetchr; hit", "and takes nothing away");
}

#[tokio::test]
async fn requests_for_the_same_part_at_the_same_time_are_one_for_the_origin() {
    let (heads, go) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
    let (noted, gate, film) = (Arc::clone(&heads), Arc::clone(&go), Film::new());
    let origin = Origin::scripted(move |mut stream, _| {
        let (noted, gate, film) = (Arc::clone(&noted), Arc::clone(&gate), film.clone());
        async move {
            while let Some(head) = read_head(&mut stream).await {
                let answer = film.answer(&head);
                noted.lock().unwrap().push(head);
                gate.notified().await;
                stream.write_all(&answer).await.unwrap();
            }
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    proxy.apply(ALL);
    let mut clients = Vec::new();
    for range in ["0-499", "0-499", "500-999", "0-499", "500-999"] {
        let mut client = proxy.client().await;
        client.send(format!("GET /film HTTP/1.1\r\nhost: a\r\nrange: bytes={range}\r\n\r\n")).await;
        clients.push((range, client));
    }
    eventually("both parts", || heads.lock().unwrap().len() == 2).await;
    eventually("all", || proxy.metric("http_server_active_requests{direction=\"inbound\"}") == 5.0).await;
    go.notify_one();
    go.notify_one();
    let film = Film::new();
    for (range, mut client) in clients {
        let response = client.response().await;
        let (first, last) = film.asked(&format!("bytes={range}")).unwrap();
        assert_eq!((response.status, &response.body), (206, &film.bytes(first, last)));
        assert_eq!(response.field("content-range"), format!("bytes {first}-{last}/1000"));
    }
    assert_eq!(heads.lock().unwrap().len(), 2);
    assert_eq!(proxy.metric(r#"fetchr_cache_requests_total{route="shop/test/all",result="collapsed"}"#), 3.0);
    eventually("both joined", || proxy.metric(r#"fetchr_cache_parts_total{event="completed"}"#) == 1.0).await;
}

#[tokio::test]
async fn whatever_is_asked_in_whatever_order_no_byte_is_wrong() {
    for seed in 0..6 {
        let mut random = fastrand::Rng::with_seed(seed);
        let rules = match seed % 3 {
            0 => ALL.to_owned(),
            1 => r#"[{"name": "all", "cache": {"maxObjectSize": "70000"}}]"#.to_owned(),
            _ => r#"[{"name": "all", "cache": {"ttl": {"override": "1h"}}}]"#.to_owned(),
        };
        let fields = if seed < 3 { "cache-control: max-age=600\r\n" } else { "cache-control: no-cache\r\n" };
        let site = Site::with(&rules, Film { length: 150_000, fields: fields.to_owned(), ..Film::new() }).await;
        for _ in 0..120 {
            let (first, length) = (random.usize(..155_000), 1 + random.usize(..40_000));
            let range = match random.u8(..8) {
                0 if seed % 2 == 0 => String::new(),
                1 => format!("-{length}"),
                2 => format!("{first}-"),
                _ => format!("{first}-{}", first + length),
            };
            let fields = match random.u8(..10) {
                0 => "if-range: \"1\"\r\n",
                1 => "if-range: \"0\"\r\n",
                2 => "cache-control: no-cache\r\n",
                _ => "",
            };
            let response = site.get(&range, fields).await;
            assert!(fields != "if-range: \"0\"\r\n" || range.is_empty() || response.status != 206, "{range}");
        }
        assert!(site.requests() <= 120);
    }
}

#[tokio::test]
async fn what_answers_of_the_store_save_is_counted_by_rule() {
    let origin = Origin::scripted(|mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            // Longer than a millisecond, which is all that the test needs.
            tokio::time::sleep(std::time::Duration::from_millis(30)).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 4\r\n\r\nkept").await.unwrap();
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    proxy.apply(ALL);
    let ask = || proxy.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    ask().await;
    let of_rule = |metric: &str| proxy.metric(&format!("{metric}{{route=\"shop/test/all\"}}"));
    assert_eq!(proxy.metric(r#"fetchr_cache_missed_total{reason="uri-miss"}"#), 1.0);
    ask().await;
    let (bytes, once) = (of_rule("fetchr_cache_served_bytes_total"), of_rule("fetchr_cache_saved_seconds_total"));
    assert!(bytes == 4.0 && (0.03..10.0).contains(&once), "{bytes} {once}");
    ask().await;
    let twice = of_rule("fetchr_cache_saved_seconds_total");
    assert!((twice - 2.0 * once).abs() < 1e-6, "each hit saves as much: {once} {twice}");
    assert_eq!(of_rule("fetchr_cache_served_bytes_total"), 8.0);
}
