//! `fetchr cache` with a proxy that runs.

use crate::{
    run::{Proxy, policy},
    support::{Said, fetchr},
};

const CACHING: &str = "cache: {ttl: {default: 60s}}";

fn purge(proxy: &Proxy, args: &[&str]) -> Said {
    cache(proxy, "purge", args)
}

fn cache(proxy: &Proxy, command: &str, args: &[&str]) -> Said {
    let (port, state) = (proxy.port_of("admin").port().to_string(), proxy.state().to_str().unwrap());
    fetchr(&[&["cache", command, "--admin-port", &port, "--state-dir", state], args].concat())
}

/// A proxy whose policy `default/headers` keeps what its origin says.
fn caching() -> Proxy {
    Proxy::start(&policy("one").replace("headers: {response: {set: [{name: x-from, value: one}]}}", CACHING))
}

#[test]
fn purge_takes_out_what_is_named_and_says_who_has_done_so() {
    let proxy = caching();
    let hits = |path: &str| proxy.get(path).contains("fetchr; hit");
    assert!(!hits("/a") && hits("/a"), "it is stored");
    let other = purge(&proxy, &["--prefix", "http://localhost/b"]);
    assert_eq!((other.code, other.stdout.starts_with("purged: 1 acknowledged, 0 cut off, 0 pending, ")), (0, true), "{other:?}");
    assert!(hits("/a"), "it was another's");
    let said = purge(&proxy, &["--url", "http://localhost/a", "-o", "json"]);
    assert_eq!((said.code, said.json()["complete"].as_bool()), (0, Some(true)), "{said:?}");
    assert!(!hits("/a"), "it is gone");
    assert!(hits("/a"));
    assert_eq!(purge(&proxy, &["--policy", "default/headers"]).code, 0);
    assert!(!hits("/a"), "it is gone with all of its policy");
}

#[test]
fn purge_that_names_nothing_or_finds_nobody_says_so() {
    let proxy = Proxy::start(&policy("one"));
    for (args, words) in [
        (&[][..], "required"),
        (&["--all", "--tag", "a"], "cannot be used with"),
        (&["--url", "/a"], "is not like http://shop.example/products"),
        (&["--tag", "a b"], "tag: contains a space"),
    ] {
        let said = purge(&proxy, args);
        assert_eq!((said.code, said.stderr.contains(words)), (2, true), "{args:?}: {said:?}");
    }
    let nobody = fetchr(&["cache", "purge", "--all", "--state-dir", "/nonexistent", "--admin-port", "1"]);
    assert_eq!((nobody.code, nobody.stderr.contains("no proxy answers on its admin port")), (4, true), "{nobody:?}");
}

#[test]
fn ls_shows_what_is_stored_in_lines_or_as_json() {
    let proxy = caching();
    let empty = cache(&proxy, "ls", &[]);
    assert_eq!((empty.code, empty.stdout.as_str()), (0, "Nothing is stored that is like this.\n"));
    for path in ["/a", "/a", "/a", "/b?c"] {
        proxy.get(path);
    }
    let said = cache(&proxy, "ls", &["--prefix", "http://localhost/a"]);
    let line = said.stdout.lines().nth(1).unwrap_or_default().split_whitespace().collect::<Vec<_>>();
    assert_eq!(line[..5], ["http://localhost/a", "-", "default/headers/all", "200", "Fresh"], "{said:?}");
    assert_eq!(line[7..], ["5", "2"], "{said:?}");
    let json = cache(&proxy, "ls", &["-o", "json", "--policy", "default/headers"]).json();
    let mut urls: Vec<_> = json["objects"].as_array().unwrap().iter().map(|object| object["url"].as_str().unwrap()).collect();
    urls.sort_unstable();
    assert_eq!((urls, json["more"].as_bool()), (vec!["http://localhost/a", "http://localhost/b?c"], Some(false)));
    let one = cache(&proxy, "ls", &["-o", "json", "--limit", "1"]).json();
    assert_eq!((one["objects"].as_array().map(Vec::len), one["more"].as_bool()), (Some(1), Some(true)));
    assert_eq!(purge(&proxy, &["--all"]).code, 0);
    assert!(cache(&proxy, "ls", &[]).stdout.contains(" Purged "), "its memory is there still");
}

#[test]
fn ls_says_what_is_wrong_with_a_question() {
    let proxy = caching();
    for (args, words) in [
        (&["--limit", "10001"][..], "10001"),
        (&["--limit", "0"], "0"),
        (&["--prefix", "/a"], "prefix: \"/a\" is not like http://shop.example/products"),
        (&["--policy", "headers"], "policy: \"headers\" is not like shop/catalogue"),
        (&["--tag", "a b"], "tag: \"a b\" is none"),
    ] {
        let said = cache(&proxy, "ls", args);
        assert_eq!((said.code, said.stderr.contains(words)), (2, true), "{args:?}: {said:?}");
    }
}

#[test]
fn stats_show_what_was_counted() {
    let proxy = caching();
    for path in ["/a", "/a", "/a", "/b"] {
        proxy.get(path);
    }
    let said = cache(&proxy, "stats", &[]);
    assert_eq!((said.code, said.stdout.starts_with("stored        2 answers, ")), (0, true), "{said:?}");
    assert!(said.stdout.contains("default/headers/all   4          50.0%   10 "), "{said:?}");
    let figures = cache(&proxy, "stats", &["-o", "json"]).json();
    assert_eq!((&figures["objects"], &figures["servedBytes"]), (&2.into(), &10.into()));
    assert_eq!((&figures["rules"][0]["hitRatio"], &figures["rules"][0]["requests"]["miss"]), (&0.5.into(), &2.into()));
    let nobody = fetchr(&["cache", "stats", "--state-dir", "/nonexistent", "--admin-port", "1"]);
    assert_eq!((nobody.code, nobody.stderr.contains("no proxy answers on its admin port")), (4, true), "{nobody:?}");
}

#[test]
fn explain_says_what_would_become_of_a_request() {
    let proxy = caching();
    let asked = |args: &[&str]| cache(&proxy, "explain", args);
    let miss = asked(&["/a"]);
    assert_eq!((miss.code, miss.stdout.contains("outcome   Miss: nothing is stored\n")), (0, true), "{miss:?}");
    proxy.get("/a");
    let hit = asked(&["http://localhost/a"]);
    assert!(hit.stdout.starts_with("GET http://localhost/a\n\noutcome   Hit: Fresh\n"), "{hit:?}");
    assert!(
        hit.stdout.contains("\nrule      default/headers/all (Enforce)\n") && hit.stdout.contains("60s by Default"),
        "{hit:?}"
    );
    let json = asked(&["/a", "--method", "post", "-o", "json"]).json();
    assert_eq!((&json["outcome"], &json["why"]), (&"Bypass".into(), &"Method".into()));
    let older = asked(&["/a", "-H", "Cache-Control: no-cache", "-H", "X-A: 1", "-o", "json"]).json();
    assert_eq!((&older["outcome"], &older["why"]), (&"Miss".into(), &"RequestNoCache".into()));
    for (args, words) in [(&["ftp://a/"][..], "url: "), (&["/a", "-H", "x"], "name: value"), (&[], "URL")] {
        let said = asked(args);
        assert_eq!((said.code, said.stderr.contains(words)), (2, true), "{args:?}: {said:?}");
    }
}

#[test]
fn get_shows_what_is_stored_or_ends_with_1() {
    let proxy = caching();
    let asked = |args: &[&str]| cache(&proxy, "get", args);
    let nothing = asked(&["/a"]);
    assert_eq!((nothing.code, nothing.stdout.as_str()), (1, ""), "{nothing:?}");
    let expected = "error: nothing is stored for it\n  /a\n  what the cache would do: fetchr cache explain /a\n";
    assert_eq!(nothing.stderr, expected);
    proxy.get("/a");
    let head = asked(&["/a"]);
    assert!(head.code == 0 && head.stdout.contains("http://localhost/a ") && !head.stdout.contains("hello"), "{head:?}");
    let body = asked(&["http://localhost/a", "--body"]);
    assert_eq!((body.code, body.stdout.as_str()), (0, "hello"), "{body:?}");
    assert!(body.stderr.starts_with("HTTP/1.1 200 OK\r\n") && body.stderr.ends_with("content-length: 5\r\n\r\n"), "{body:?}");
    assert_eq!(asked(&["/a", "-o", "json"]).json()["stored"]["bodyBytes"], 5);
    assert_eq!(asked(&["/a", "--body", "-o", "json"]).code, 2);
    assert_eq!(asked(&["nowhere"]).code, 2);
}

#[test]
fn top_lists_the_most_asked_for_and_the_largest() {
    let proxy = caching();
    let long = format!("/c/{}", "long/".repeat(100));
    for path in ["/a", "/b", "/b", "/b", &long, &long] {
        proxy.get(path);
    }
    let urls = |args: &[&str]| -> Vec<String> {
        let top = cache(&proxy, "top", &[args, &["-o", "json"]].concat()).json();
        top["objects"].as_array().unwrap().iter().map(|object| object["url"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(urls(&[]), ["http://localhost/b", &*format!("http://localhost{long}"), "http://localhost/a"]);
    assert_eq!(urls(&["--by", "bytes", "--limit", "1"]), [format!("http://localhost{long}")]);
    assert_eq!(urls(&["--prefix", "http://localhost/a"]), ["http://localhost/a"]);
    let said = cache(&proxy, "top", &["--limit", "1"]);
    assert_eq!((said.code, said.stdout.lines().count()), (0, 2), "{said:?}");
    assert_eq!(cache(&proxy, "top", &["--by", "age"]).code, 2);
}
