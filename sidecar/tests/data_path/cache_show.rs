//! What the admin port shows of a cache that real requests have filled.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::purge::Site;

const ALL: &str = r#"[{"name": "all", "cache": {"tags": {"header": "xkey"}}}]"#;

async fn site(fields: &'static str) -> Site {
    Site::start(ALL, fields, None).await
}

/// What is shown as JSON, with status 200.
async fn shown(site: &Site, target: &str) -> Value {
    let answer = site.show(target).await;
    assert_eq!(answer.status, 200, "{target}: {}", answer.text());
    serde_json::from_str(answer.text()).unwrap()
}

/// One field of all objects that are listed.
async fn listed(site: &Site, query: &str, field: &str) -> BTreeSet<String> {
    let page = shown(site, &format!("/cache/objects?{query}")).await;
    page["objects"].as_array().unwrap().iter().map(|object| object[field].to_string().replace('"', "")).collect()
}

fn set<const N: usize>(all: [&str; N]) -> BTreeSet<String> {
    all.map(ToOwned::to_owned).into()
}

#[tokio::test]
async fn listing_tells_what_is_stored_and_how_it_stands() {
    let site = site("cache-control: max-age=600\r\nvary: accept-language\r\netag: \"1\"\r\nxkey: news sport\r\n").await;
    for language in ["de", "en;q=0.5, fr", "de"] {
        let request = format!("GET /a?b HTTP/1.1\r\nhost: a.example:81\r\naccept-language: {language}\r\n\r\n");
        site.proxy.ask(&request).await;
    }
    let page = shown(&site, "/cache/objects").await;
    let mut objects = page["objects"].as_array().unwrap().clone();
    objects.sort_by_key(|object| object["variant"].to_string());
    assert_eq!((objects.len(), page.get("next")), (2, None));
    let de = &objects[0];
    assert_eq!(de["url"], "http://a.example:81/a?b");
    assert_eq!((&de["rule"], &de["status"], &de["hits"]), (&"shop/test/all".into(), &200.into(), &1.into()));
    assert_eq!((de["state"].as_str(), de["bodyBytes"].as_u64()), (Some("Fresh"), Some(8)));
    assert!(matches!(de["freshSeconds"].as_i64(), Some(590..=600)), "{de}");
    let values: Vec<_> = objects.iter().map(|object| object["variant"][0]["value"].as_str().unwrap()).collect();
    assert_eq!((values, &de["variant"][0]["name"]), (vec!["de", "fr,en;q=0.5"], &"accept-language".into()));
    site.purge(r#"{"tag": "sport", "soft": true}"#).await;
    assert_eq!(listed(&site, "", "state").await, set(["Revalidate"]));
    site.purge(r#"{"tag": "news"}"#).await;
    assert_eq!(listed(&site, "", "state").await, set(["Purged"]));
    assert_eq!(site.proxy.metric("fetchr_cache_objects"), 2.0, "to look takes nothing out");
    assert_eq!(site.proxy.metric(r#"fetchr_cache_requests_total{route="shop/test/all",result="hit"}"#), 1.0);
}

#[tokio::test]
async fn listing_has_what_is_asked_for_alone() {
    let site = site("cache-control: max-age=600\r\nxkey: news\r\n").await;
    for path in ["/a/1", "/a/2", "/b/1"] {
        site.get(path).await;
    }
    for (query, expected) in [
        ("prefix=http://a.example/a/", set(["http://a.example/a/1", "http://a.example/a/2"])),
        ("prefix=https://A.example:443/b", set(["http://a.example/b/1"])),
        ("prefix=http://b.example/", set([])),
        ("tag=news&prefix=http://a.example/b", set(["http://a.example/b/1"])),
        ("tag=olds", set([])),
        ("policy=shop/other", set([])),
    ] {
        assert_eq!(listed(&site, query, "url").await, expected, "{query}");
    }
    assert_eq!(listed(&site, "policy=shop/test", "url").await.len(), 3);
    for (query, words) in [
        ("prefix=/a", "prefix: \"/a\" is not like http"),
        ("tag=a%20b", "tag: \"a b\" is none"),
        ("policy=shop", "policy: \"shop\" is not like"),
        ("limit=0", "limit: 0 is not 1 to 1000"),
        ("limit=1001", "limit: 1001 is not"),
        ("tags=a", "unknown field"),
    ] {
        let answer = site.show(&format!("/cache/objects?{query}")).await;
        assert!(answer.status == 400 && answer.text().contains(words), "{query}: {}", answer.text());
    }
}

#[tokio::test]
async fn listing_goes_on_where_a_page_ended() {
    let site = site("cache-control: max-age=600\r\n").await;
    let paths: Vec<String> = (0..40).map(|n| format!("/{n}")).collect();
    for path in &paths {
        site.get(path).await;
    }
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let page = shown(&site, &format!("/cache/objects?limit=7{after}")).await;
        let objects = page["objects"].as_array().unwrap();
        assert!(objects.len() <= 7);
        found.extend(objects.iter().map(|object| object["url"].as_str().unwrap().to_owned()));
        match page["next"].as_u64() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    found.sort_unstable();
    let mut expected: Vec<_> = paths.iter().map(|path| format!("http://a.example{path}")).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
    let nowhere = shown(&site, "/cache/objects?after=18446744073709551615").await;
    assert_eq!(nowhere["objects"].as_array().map(Vec::len), Some(0));
}

#[tokio::test]
async fn keys_without_a_host_are_below_the_prefixes_of_all_hosts() {
    let rules = r#"[{"name": "all", "cache": {"key": {"host": "Ignore"}}}]"#;
    let site = Site::start(rules, "cache-control: max-age=600\r\n", None).await;
    site.get("/a/1").await;
    assert_eq!(listed(&site, "prefix=http://b.example/a", "url").await, set(["/a/1"]));
    assert_eq!(listed(&site, "prefix=http://b.example/b", "url").await, set([]));
}

#[tokio::test]
async fn most_asked_for_and_largest_come_first_when_that_is_asked() {
    let site = site("cache-control: max-age=600\r\n").await;
    for (path, times) in [("/once", 1), ("/often", 5), ("/twice", 2), (&*format!("/{}", "long".repeat(100)), 3)] {
        for _ in 0..times {
            site.get(path).await;
        }
    }
    let first = async |query: &str| -> Vec<String> {
        let page = shown(&site, &format!("/cache/objects?limit=2&{query}")).await;
        let path = |object: &Value| object["url"].as_str().unwrap().replace("http://a.example", "");
        page["objects"].as_array().unwrap().iter().map(|object| path(object).chars().take(7).collect()).collect()
    };
    assert_eq!(first("order=hits").await, ["/often", "/longlo"]);
    assert_eq!(first("order=bytes").await[0], "/longlo");
    assert_eq!(site.show("/cache/objects?order=age").await.status, 400);
}

#[tokio::test]
async fn figures_are_those_of_the_metrics() {
    let site = site("cache-control: max-age=600\r\n").await;
    for path in ["/a", "/a", "/a", "/b"] {
        site.get(path).await;
    }
    for method in ["POST", "PUT"] {
        site.proxy.ask(&format!("{method} /c HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0\r\n\r\n")).await;
    }
    site.purge(r#"{"all": true}"#).await;
    site.get("/a").await;
    let figures = shown(&site, "/cache/stats").await;
    let rule = &figures["rules"][0];
    assert_eq!((&rule["rule"], &rule["total"]), (&"shop/test/all".into(), &7.into()));
    assert_eq!(rule["requests"], serde_json::json!({"hit": 2, "miss": 3, "bypass": 2}));
    assert_eq!(rule["hitRatio"], 0.4);
    assert_eq!((&figures["bypassed"], &figures["purges"]["hard"]), (&serde_json::json!({"Method": 2}), &1.into()));
    assert_eq!((&figures["evictions"]["removed"], &figures["servedBytes"]), (&1.into(), &16.into()));
    assert_eq!((&figures["fills"]["led"], &figures["limitBytes"]), (&3.into(), &(64 << 20).into()));
    for (line, field) in [("objects", "objects"), ("size_bytes", "bytes"), ("limit_bytes", "limitBytes")] {
        assert_eq!(Some(site.proxy.metric(&format!("fetchr_cache_{line}"))), figures[field].as_f64(), "{line}");
    }
}

/// What would become of a request.
async fn explained(site: &Site, query: &str) -> Value {
    shown(site, &format!("/cache/explain?{query}")).await
}

#[tokio::test]
async fn explanation_says_what_a_request_then_gets() {
    let rules = r#"[{"name": "all", "cache": {
        "stale": {"ifError": "60s"}, "bypass": "request.path == '/by'", "refresh": "request.path == '/new'", "tags": {"header": "xkey"}
    }}]"#;
    let fields = "cache-control: max-age=600\r\nvary: x-a\r\netag: \"1\"\r\nxkey: news\r\n";
    let site = Site::start(rules, fields, None).await;
    for path in ["/a", "/new"] {
        site.proxy.ask(&format!("GET {path} HTTP/1.1\r\nhost: a.example\r\nx-a: 1\r\n\r\n")).await;
    }
    let counted = || {
        let page = site.proxy.metrics.encode();
        page.lines()
            .filter(|line| line.starts_with("fetchr_cache") && !line.starts_with("fetchr_cache_fill"))
            .map(ToOwned::to_owned)
            .collect::<BTreeSet<String>>()
    };
    let before = counted();
    for (path, method, field, outcome, why, detail) in [
        ("/a", "GET", "x-a: 1", "Hit", "Fresh", "fetchr; hit; ttl="),
        ("/a", "HEAD", "x-a: 1", "Hit", "Fresh", "fetchr; hit; ttl="),
        ("/a", "GET", "x-a: 2", "Miss", "nothing is stored for this variant", "fetchr; fwd=vary-miss"),
        ("/b", "GET", "x-a: 1", "Miss", "nothing is stored", "fetchr; fwd=uri-miss"),
        ("/a", "POST", "x-a: 1", "Bypass", "Method", "fetchr; fwd=method; detail=Method"),
        ("/a", "GET", "if-match: x", "Bypass", "Precondition", "fetchr; fwd=bypass; detail=Precondition"),
        ("/by", "GET", "x-a: 1", "Bypass", "Policy", "fetchr; fwd=bypass; detail=Policy"),
        ("/new", "GET", "x-a: 1", "Miss", "Policy", "fetchr; fwd=request; detail=Policy"),
    ] {
        let asked = format!("url=http://a.example{path}&method={method}&header={}", field.replace(' ', "%20"));
        let said = explained(&site, &asked).await;
        let status = said["cacheStatus"].as_str().unwrap_or_default();
        assert_eq!((said["outcome"].as_str(), said["why"].as_str()), (Some(outcome), Some(why)), "{asked}");
        assert!(status.starts_with(detail), "{asked}: {status}");
        assert_eq!((&said["rule"]["name"], &said["rule"]["mode"]), (&"shop/test/all".into(), &"Enforce".into()));
    }
    assert_eq!(counted(), before, "to ask counts as nothing");
    let kept = [("/a", "x-a: 1"), ("/a", "x-a: 2"), ("/by", "x-a: 1"), ("/new", "x-a: 1")];
    for (path, field) in kept {
        let asked = format!("url=http://a.example{path}&header={}", field.replace(' ', "%20"));
        let said = explained(&site, &asked).await;
        let got = site.proxy.ask(&format!("GET {path} HTTP/1.1\r\nhost: a.example\r\n{field}\r\n\r\n")).await;
        let (said, got) = (said["cacheStatus"].as_str().unwrap().to_owned(), got.field("cache-status").to_owned());
        let same = |status: &str| status.split("; ttl").next().unwrap().replace("; stored", "").replace("; fwd-status=200", "");
        assert_eq!(same(&said), same(&got), "{path} {field}");
    }
}

#[tokio::test]
async fn explanation_has_key_freshness_and_purges() {
    let rules = r#"[{"name": "all", "cache": {
        "ttl": {"default": "60s"}, "stale": {"ifError": "30s"}, "key": {"headers": ["x-tenant"], "query": {"ignore": ["utm_*"]}}
    }}]"#;
    let site = Site::start(rules, "etag: \"1\"\r\n", None).await;
    site.proxy.ask("GET /a?b&utm_x=1 HTTP/1.1\r\nhost: a.example\r\nx-tenant: t\r\n\r\n").await;
    let url = "url=http://A.example:80/x/../a?b%26utm_y=2&header=x-tenant:t";
    let said = explained(&site, url).await;
    assert_eq!((&said["outcome"], &said["purged"]), (&"Hit".into(), &"No".into()), "{said}");
    let part = |name: &str, value: &str| serde_json::json!({"name": name, "value": value});
    let expected = [
        part("rule", "shop/test/all"),
        part("scheme", "http"),
        part("host", "a.example"),
        part("path", "/a"),
        part("query", "b"),
        part("header x-tenant", "t"),
    ];
    assert_eq!(said["key"], serde_json::json!(expected));
    let freshness = &said["freshness"];
    assert_eq!((&freshness["lifetime"], &freshness["from"]), (&60_000.into(), &"Default".into()));
    assert_eq!((&freshness["ifError"], &freshness["keep"]), (&30_000.into(), &600_000.into()));
    assert_eq!((&said["stored"]["status"], &said["stored"]["hits"]), (&200.into(), &0.into()));
    site.purge(r#"{"all": true, "soft": true}"#).await;
    let said = explained(&site, url).await;
    assert_eq!((&said["outcome"], &said["why"], &said["purged"]), (&"Revalidate".into(), &"Expired".into(), &"Soft".into()));
    site.purge(r#"{"all": true}"#).await;
    let said = explained(&site, url).await;
    assert_eq!((&said["outcome"], &said["purged"]), (&"Miss".into(), &"Hard".into()));
    assert_eq!(said["why"], "what was stored was purged");
}

#[tokio::test]
async fn explanation_says_where_no_cache_has_a_say() {
    let rules = r#"[{"name": "some", "matches": [{"path": {"value": "/a"}}], "cache": {"mode": "Shadow"}}]"#;
    let site = Site::start(rules, "cache-control: max-age=600\r\n", None).await;
    let said = explained(&site, "url=http://a.example/b").await;
    assert_eq!((&said["outcome"], said.get("rule"), said.get("key")), (&"None".into(), None, None));
    site.get("/a").await;
    let said = explained(&site, "url=http://a.example/a").await;
    assert_eq!((&said["outcome"], &said["rule"]["mode"], said.get("cacheStatus")), (&"Bypass".into(), &"Shadow".into(), None));
    assert!(said["why"].as_str().unwrap().contains("Hit is counted"), "{said}");
    for (query, words) in [
        ("", "missing field"),
        ("url=/a", "url: "),
        ("url=http://a/%2500", "url: the proxy refuses it: the path has an encoded NUL"),
        ("url=http://a/&header=x", "header: \"x\" is not like"),
        ("url=http://a/&method=G%20T", "method: "),
    ] {
        let answer = site.show(&format!("/cache/explain?{query}")).await;
        assert!(answer.status == 400 && answer.text().contains(words), "{query}: {}", answer.text());
    }
}

#[tokio::test]
async fn stored_answer_is_shown_with_head_and_body_or_why_there_is_none() {
    let site = site("cache-control: max-age=600\r\nvary: x-a\r\nx-b: 1\r\nx-b: 2\r\n").await;
    let object = async |query: &str| site.show(&format!("/cache/object?url=http://a.example/a&{query}")).await;
    let answer = object("").await;
    assert_eq!((answer.status, answer.text()), (404, "nothing is stored for it\n"));
    site.proxy.ask("GET /a HTTP/1.1\r\nhost: a.example\r\nx-a: 1\r\n\r\n").await;
    assert_eq!(object("").await.text(), "nothing is stored for this variant\n");
    let head: Value = serde_json::from_str(object("header=x-a:1").await.text()).unwrap();
    assert_eq!((&head["stored"]["status"], &head["stored"]["bodyBytes"]), (&200.into(), &8.into()));
    let fields = |name: &str| {
        let headers = head["headers"].as_array().unwrap().iter().filter(|field| field["name"] == *name);
        headers.map(|field| field["value"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((fields("x-b"), fields("vary")), (vec!["1".to_owned(), "2".to_owned()], vec!["x-a".to_owned()]));
    let whole = object("header=x-a:1&body=true").await;
    assert_eq!((whole.status, whole.field("content-type")), (200, "message/http"));
    assert!(whole.text().starts_with("HTTP/1.1 200 OK\r\n") && whole.text().contains("\r\nx-b: 2\r\n"), "{}", whole.text());
    assert!(whole.text().ends_with("content-length: 8\r\n\r\nanswer 1"), "{}", whole.text());
    assert_eq!(object("body=perhaps").await.status, 400);
    site.purge(r#"{"all": true}"#).await;
    let answer = object("header=x-a:1").await;
    assert_eq!((answer.status, answer.text()), (404, "what was stored for it was purged\n"));
}

#[tokio::test]
async fn cache_is_shown_with_the_token_alone() {
    let site = site("cache-control: max-age=600\r\n").await;
    for target in ["/cache/objects", "/cache/stats", "/cache/object?url=http://a/", "/cache/explain"] {
        assert_eq!(site.order_at(target, "wrong").await.status, 401, "{target}");
    }
}
