//! `fetchr cache` with a proxy that runs.

use crate::{
    run::{Proxy, policy},
    support::{Said, fetchr},
};

const CACHING: &str = "cache: {ttl: {default: 60s}}";

fn purge(proxy: &Proxy, args: &[&str]) -> Said {
    let (port, state) = (proxy.port_of("admin").port().to_string(), proxy.state().to_str().unwrap());
    fetchr(&[&["cache", "purge", "--admin-port", &port, "--state-dir", state], args].concat())
}

#[test]
fn purge_takes_out_what_is_named_and_says_who_has_done_so() {
    let proxy = Proxy::start(&policy("one").replace("headers: {response: {set: [{name: x-from, value: one}]}}", CACHING));
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
