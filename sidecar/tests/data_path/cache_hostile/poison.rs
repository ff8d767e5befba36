//! Requests made to have an answer of their making kept for others: whatever came before, each gets what the origin itself would answer.

use super::{ALL, Pair, Site, get, kept, rule};
use crate::support::field;

/// An origin that believes all that it is told of its target.
fn credulous(head: &str, _: usize) -> String {
    let told = |names: &[&str]| names.iter().find_map(|name| field(head, name)).map(str::to_owned);
    let forwarded = |name: &str| {
        let pieces = field(head, "forwarded")?.split([',', ';']).map(str::trim);
        pieces.filter_map(|piece| piece.strip_prefix(name)).find(|value| value.contains("evil")).map(str::to_owned)
    };
    let mut line = head.split(' ');
    let (method, target) = (line.next().unwrap(), line.next().unwrap());
    let host = told(&["x-host", "x-original-host", "x-http-host-override", "x-forwarded-host", "x-forwarded-server"]);
    let host = forwarded("host=").or(host).or(told(&["host"])).unwrap_or_default();
    let path = told(&["x-original-url", "x-rewrite-url", "x-original-uri", "x-forwarded-uri", "x-forwarded-path"]);
    let prefix = told(&["x-forwarded-prefix"]).unwrap_or_default();
    let method = told(&["x-http-method-override", "x-http-method", "x-method-override"]).unwrap_or(method.to_owned());
    let scheme =
        told(&["x-forwarded-proto", "x-forwarded-scheme", "x-scheme", "x-url-scheme", "x-forwarded-ssl", "front-end-https"]);
    let port = told(&["x-forwarded-port"]).unwrap_or_default();
    let body = head.split_once("\r\n\r\n").unwrap().1;
    kept(&format!("{method} {}://{host}:{port}{prefix}{} {body}", scheme.unwrap_or_default(), path.unwrap_or(target.to_owned())))
}

#[tokio::test]
async fn who_tells_of_another_target_tells_nobody_else() {
    for trusted in [false, true] {
        let change = |settings: &mut crds::proxy::FetchrProxySpec| {
            if trusted {
                settings.client_address.trusted_cidrs = vec!["127.0.0.0/8".to_owned()];
            }
        };
        let pair = Pair::with(ALL, change, credulous).await;
        let fields = [
            "x-forwarded-host",
            "x-forwarded-server",
            "x-forwarded-port",
            "x-forwarded-proto",
            "x-forwarded-scheme",
            "x-forwarded-prefix",
            "x-forwarded-ssl",
            "x-forwarded-uri",
            "x-forwarded-path",
            "x-host",
            "x-original-host",
            "x-http-host-override",
            "x-original-url",
            "x-original-uri",
            "x-rewrite-url",
            "x-http-method-override",
            "x-http-method",
            "x-method-override",
            "x-scheme",
            "x-url-scheme",
            "front-end-https",
        ];
        let mut requests = vec![get("/", ""), get("/", "x-other: 1\r\n"), get("/", "connection: x-host\r\nx-host: evil\r\n")];
        requests.extend(fields.iter().map(|name| get("/", &format!("{name}: evil\r\n"))));
        requests.extend(fields.iter().map(|name| get("/", &format!("{name}: evil2\r\n{name}: evil\r\n"))));
        requests.push(get("/", "x-host: a\r\nx-original-url: /evil\r\n"));
        requests.push(get("/", "forwarded: for=1.2.3.4;host=evil\r\n"));
        requests.push(get("/", "forwarded: for=1.2.3.4;host=\"evil\", for=5.6.7.8\r\n"));
        pair.agree(&requests).await;
    }
}

#[tokio::test]
async fn get_with_a_body_is_not_looked_up_nor_kept() {
    let pair = Pair::of(ALL, credulous).await;
    for fat in [
        "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nevil",
        "GET / HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 6\r\n\r\np=evil",
        "HEAD / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
    ] {
        for _ in 0..2 {
            if !fat.starts_with("HEAD") {
                pair.agrees(fat, "").await;
            }
            pair.agrees(&get("/", ""), fat).await;
        }
    }
    assert_eq!(pair.cached.requests(), 5, "each with a body, and one without");
}

#[tokio::test]
async fn host_in_another_form_is_another_host() {
    // To an origin that compares them byte for byte, most are unknown.
    let answer = |head: &str, _: usize| {
        // Without a host the proxy names the address of the upstream.
        let host = field(head, "host").filter(|host| !host.starts_with("127.")).unwrap_or("at all");
        if host == "a" { kept("the site") } else { kept(&format!("no site {host}")) }
    };
    let pair = Pair::of(ALL, answer).await;
    let mut requests: Vec<String> = ["a", "A", "a:80", "a:080", "a:8080", "a.", "A:80", "a:443", "a:", "b", "[::1]", "xn--a"]
        .iter()
        .map(|host| format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"))
        .collect();
    for target in ["http://a/", "HTTP://a/", "http://A/", "http://a:80/", "http://a", "http://b/", "https://a/"] {
        let host = target.split('/').nth(2).unwrap();
        requests.push(format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n"));
    }
    requests.push("GET http://evil/ HTTP/1.1\r\nhost: a\r\n\r\n".to_owned());
    requests.push("GET / HTTP/1.1\r\nhost: a\r\nhost: evil\r\n\r\n".to_owned());
    requests.push("GET / HTTP/1.0\r\n\r\n".to_owned());
    requests.push("GET / HTTP/1.0\r\nhost: a\r\n\r\n".to_owned());
    pair.agree(&requests).await;
}

#[tokio::test]
async fn path_in_another_form_gets_no_other_ones_answer() {
    for cache in ["{}", r#"{"key": {"host": "Ignore", "query": {"order": "Sort"}}}"#] {
        let pair = Pair::of(&rule(cache), |head, _| kept(head.split(' ').nth(1).unwrap())).await;
        let paths = [
            "/",
            "//",
            "/a",
            "/A",
            "/a/",
            "//a",
            "/a//b",
            "/a/b",
            "/a/../b",
            "/b",
            "/./b",
            "/a/./b",
            "/%2e/b",
            "/a/%2e%2e/b",
            "/..;/b",
            "/b;x=1",
            "/b;x",
            "/%62",
            "/b%2f",
            "/b%2F",
            "/a%2fb",
            "/a%5cb",
            "/a\\b",
            "/%c3%a9",
            "/%C3%A9",
            "/b%",
            "/b%zz",
            "/b%2",
            "/b?",
            "/b?x",
            "/b?x=1",
            "/b%3fx=1",
            "/b??x",
            "/b?x#y",
            "/a?/../b",
            "/b.css",
            "/b/.css",
            "/b%20",
            "/b+",
            "/b%2520",
            "/../../b",
            "/b/..",
        ];
        pair.agree(&paths.map(|path| get(path, ""))).await;
    }
}

/// The parameter `page`, as applications of several kinds read it.
fn pages(head: &str, _: usize) -> String {
    let target = head.split(' ').nth(1).unwrap();
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let decode = |text: &str| {
        text.replace("%61", "a").replace("%67", "g").replace("%5b", "[").replace("%5d", "]").replace("%3d", "=").replace('+', " ")
    };
    let pairs = |splits: &'static [char]| {
        let pieces = query.split(splits).map(|piece| piece.split_once('=').unwrap_or((piece, "")));
        pieces.map(|(name, value)| (decode(name), value.to_owned())).collect::<Vec<_>>()
    };
    let exact = |splits| pairs(splits).into_iter().filter(|(name, _)| name == "page").map(|(_, value)| value).collect::<Vec<_>>();
    let any_case: Vec<String> =
        pairs(&['&']).into_iter().filter(|(name, _)| name.eq_ignore_ascii_case("page")).map(|(_, value)| value).collect();
    let of_php = pairs(&['&']).into_iter().rfind(|(name, _)| name.trim_start().split('[').next() == Some("page"));
    let (first, last, split) = (exact(&['&']).first().cloned(), exact(&['&']).pop(), exact(&['&', ';']).pop());
    kept(&format!("{first:?} {last:?} {split:?} {} {of_php:?}", any_case.join(",")))
}

#[tokio::test]
async fn parameter_under_another_name_counts() {
    for query in [
        r#"{"ignore": ["utm_*", "x"]}"#,
        r#"{"allow": ["page"]}"#,
        r#"{"allow": ["pag*"]}"#,
        r#"{"order": "Sort"}"#,
        r#"{"ignore": ["utm_*", "x"], "order": "Sort"}"#,
        r#"{"allow": ["page"], "order": "Sort"}"#,
    ] {
        let pair = Pair::of(&rule(&format!(r#"{{"key": {{"query": {query}}}}}"#)), pages).await;
        let queries = [
            "",
            "?",
            "?page=1",
            "?page=1&utm_a=2",
            "?utm_a=2&page=1",
            "?page=evil",
            "?page=1&page=evil",
            "?page=evil&page=1",
            "?x=1;page=evil",
            "?page=1&x=1;page=evil",
            "?x=1;page=evil&page=1",
            "?utm_a=1;page=evil&page=1",
            "?page=1&utm_a=1;page=evil",
            "?p%61ge=evil",
            "?page=1&p%61ge=evil",
            "?p%61ge=evil&page=1",
            "?PAGE=evil",
            "?page=1&PAGE=evil",
            "?PAGE=evil&page=1",
            "?page[]=evil",
            "?page=1&page[]=evil",
            "?page[]=evil&page=1",
            "?page%5b%5d=evil&page=1",
            "?page[a]=evil",
            "?+page=evil&page=1",
            "?page=1&+page=evil",
            "?page",
            "?page=",
            "?page=1&",
            "?&page=1",
            "?&&page=1",
            "?page%3d1",
            "?page==1",
            "?page=1%26page=evil",
            "?x=1&page=1",
            "?page=1&x=1",
            "?x&x&page=1",
            "?utm_a",
            "?utm_a=page=evil",
            "?pa%67e=1",
            "?page=1?page=2",
            "?=page",
            "?x=%00&page=1",
        ];
        pair.agree(&queries.map(|query| get(&format!("/{query}"), ""))).await;
    }
}

#[tokio::test]
async fn cookie_that_an_application_reads_counts() {
    let answer = |head: &str, _: usize| {
        let line = field(head, "cookie").unwrap_or_default();
        let pairs = line.split(';').filter_map(|pair| pair.split_once('='));
        let read: Vec<&str> = pairs.filter(|(name, _)| name.trim() == "currency").map(|(_, value)| value.trim()).collect();
        kept(&format!("{read:?} {:?}", field(head, "x-tenant")))
    };
    let pair = Pair::of(&rule(r#"{"key": {"cookies": ["currency"], "headers": ["x-tenant"]}}"#), answer).await;
    let fields = [
        "",
        "cookie: currency=EUR\r\n",
        "cookie: currency=USD\r\n",
        "cookie: currency =USD\r\n",
        "cookie:  currency= USD\r\n",
        "cookie: a=b\r\n",
        "cookie: a=b; currency=USD\r\n",
        "cookie: a=b;currency=USD;c\r\n",
        "cookie: currency\r\n",
        "cookie: currency=\r\n",
        "cookie: currency=EUR; currency=USD\r\n",
        "cookie: currency=USD; currency=EUR\r\n",
        "cookie: Currency=USD\r\n",
        "cookie: a=currency=USD\r\n",
        "cookie: ;;\r\n",
        "cookie: a=b\r\ncookie: currency=USD\r\n",
        "x-tenant: a\r\n",
        "x-tenant:\r\n",
        "x-tenant: b\r\nconnection: x-tenant\r\n",
        "cookie: currency=EUR\r\nconnection: cookie\r\n",
        "x-tenant: a\r\nx-tenant: b\r\n",
    ];
    pair.agree(&fields.map(|fields| get("/", fields))).await;
}

#[tokio::test]
async fn field_that_connection_takes_away_selects_nothing() {
    let answer = |head: &str, _: usize| {
        let language = field(head, "accept-language").unwrap_or("none");
        super::ok("cache-control: max-age=600\r\nvary: accept-language\r\n", language)
    };
    let pair = Pair::of(ALL, answer).await;
    let fields = [
        "",
        "accept-language: de\r\n",
        "accept-language: en\r\n",
        "connection: accept-language\r\naccept-language: de\r\n",
        "connection: Accept-Language, close\r\naccept-language: en\r\n",
        "connection: close\r\nconnection: accept-language\r\naccept-language: fr\r\n",
        "accept-language: fr\r\n",
    ];
    pair.agree(&fields.map(|fields| get("/", fields))).await;
}

#[tokio::test]
async fn refusal_of_an_odd_request_is_kept_for_nobody() {
    for status in [
        "400 Bad Request",
        "401 Unauthorized",
        "408 Request Timeout",
        "413 Content Too Large",
        "429 Too Many Requests",
        "431 Too Large",
    ] {
        for fields in ["cache-control: max-age=600\r\n", "", "expires: Fri, 01 Jan 2100 00:00:00 GMT\r\n"] {
            for cache in [
                "{}",
                r#"{"ttl": {"default": "1h", "min": "1m", "heuristic": "LastModified"}}"#,
                r#"{"ttl": {"override": "1h"}}"#,
            ] {
                let site = Site::start(&rule(cache), move |head, _| {
                    let body = "refused";
                    if head.len() > 3000 {
                        format!("HTTP/1.1 {status}\r\n{fields}last-modified: Thu, 01 Jan 1970 00:00:00 GMT\r\ncontent-length: {}\r\n\r\n{body}", body.len())
                    } else {
                        kept("fine")
                    }
                })
                .await;
                let big = format!("x-big: {}\r\n", "x".repeat(4000));
                assert_eq!(site.get("/", &big).await.status.to_string(), status[..3]);
                assert_eq!(site.get("/", "").await.text(), "fine", "{status} {fields} {cache}");
                assert_eq!(site.get("/", &big).await.text(), "fine", "what is kept, it gets");
            }
        }
    }
}

#[tokio::test]
async fn refusal_whose_status_the_policy_names_is_kept() {
    let cache = r#"{"ttl": {"byStatus": [{"status": 431, "ttl": "1h"}]}}"#;
    let site =
        Site::start(&rule(cache), |_, number| format!("HTTP/1.1 431 Too Large\r\ncontent-length: 1\r\n\r\n{number}")).await;
    for _ in 0..2 {
        assert_eq!(site.get("/", "").await.text(), "1");
    }
}

#[tokio::test]
async fn errors_of_the_origin_are_kept_only_by_their_own_word() {
    for status in ["404 Not Found", "410 Gone", "500 Internal Server Error", "501 Not Implemented", "503 Service Unavailable"] {
        for (fields, by_origin) in [("", false), ("cache-control: max-age=600\r\n", true)] {
            let cache = r#"{"ttl": {"default": "1h", "min": "1m"}}"#;
            let site = Site::start(&rule(cache), move |_, number| {
                format!("HTTP/1.1 {status}\r\n{fields}content-length: 1\r\n\r\n{number}")
            })
            .await;
            assert_eq!(site.get("/", "").await.text(), "1");
            assert_eq!(site.get("/", "").await.text(), if by_origin { "1" } else { "2" }, "{status} {fields}");
        }
    }
}

#[tokio::test]
async fn head_and_other_methods_give_a_get_nothing() {
    let pair = Pair::of(ALL, credulous).await;
    for method in ["HEAD", "OPTIONS", "PROPFIND", "QUERY", "get", "GETX", "PURGE", "DELETE", "POST"] {
        let mut client = pair.cached.proxy.client().await;
        client.send(format!("{method} /{method} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
        client.rest().await;
        pair.agrees(&get(&format!("/{method}"), ""), method).await;
        pair.agrees(&get(&format!("/{method}"), ""), "itself").await;
    }
}
