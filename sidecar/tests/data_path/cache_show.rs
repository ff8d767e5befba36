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

#[tokio::test]
async fn cache_is_shown_with_the_token_alone() {
    let site = site("cache-control: max-age=600\r\n").await;
    for target in ["/cache/objects", "/cache/stats"] {
        assert_eq!(site.order_at(target, "wrong").await.status, 401, "{target}");
    }
}
