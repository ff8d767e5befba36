//! `fetchr limits` with a proxy that runs.

use crate::{
    run::{Proxy, policy},
    support::{Said, fetchr},
};

const LIMITS: &str =
    "rateLimits: [{name: per-user, limit: {requests: 1, per: 1h, burst: 2}, key: [{source: Query, name: user}]}]";
const LIMIT: &str = "default/headers/all/per-user";

/// A proxy whose policy `default/headers` has a limit.
fn limiting() -> Proxy {
    Proxy::start(&policy("one").replace("headers: {response: {set: [{name: x-from, value: one}]}}", LIMITS))
}

fn limits(proxy: &Proxy, command: &str, args: &[&str]) -> Said {
    let (port, state) = (proxy.port_of("admin").port().to_string(), proxy.state().to_str().unwrap());
    fetchr(&[&["limits", command, "--admin-port", &port, "--state-dir", state], args].concat())
}

fn passes(proxy: &Proxy, user: &str) -> bool {
    proxy.get(&format!("/?user={user}")).starts_with("HTTP/1.1 200")
}

#[test]
fn limits_are_listed_looked_at_and_reset() {
    let proxy = limiting();
    assert_eq!([(); 4].map(|()| passes(&proxy, "bert")), [true, true, false, false]);
    let listed = limits(&proxy, "ls", &[]);
    let line = listed.stdout.lines().nth(1).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(
        (listed.code, line.as_str()),
        (0, "default/headers/all/per-user Enforce TokenBucket 1 per 1h, burst 2 Query user Pod 2 2")
    );
    assert_eq!(limits(&proxy, "ls", &["-o", "json"]).json()["limits"][0]["decisions"][0]["source"], "Pod");
    let count = limits(&proxy, "get", &[LIMIT, "bert"]);
    assert!(count.code == 0 && count.stdout.contains("remaining   0 of 2, counted by the pod\nnext        in "), "{count:?}");
    assert_eq!(limits(&proxy, "get", &[LIMIT, "anna", "-o", "json"]).json()["remaining"], 2);
    let top = limits(&proxy, "top", &[]);
    let line = top.stdout.lines().nth(1).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!((top.code, line.as_str()), (0, "default/headers/all/per-user bert 2 0 of 2"));
    let reset = limits(&proxy, "reset", &[LIMIT, "bert"]);
    assert_eq!((reset.code, reset.stdout.as_str()), (0, "forgotten: default/headers/all/per-user \"bert\"\n"));
    assert!(passes(&proxy, "bert"));
    assert_eq!(limits(&proxy, "reset", &[LIMIT, "carl", "-o", "json"]).json()["found"], false);
}

#[test]
fn wrong_names_and_proxies_that_are_not_there_say_so() {
    let proxy = limiting();
    for (command, args, code, words) in [
        ("get", &[][..], 2, "required"),
        ("get", &[LIMIT], 2, "has 1 parts, and 0 values are given"),
        ("get", &["default/headers/all/none", "a"], 1, "no limit default/headers/all/none is in force"),
        ("reset", &[LIMIT, "a", "b"], 2, "has 1 parts, and 2 values are given"),
        ("top", &["--by", "luck"], 2, "luck"),
        ("ls", &["-n", "shop"], 2, "-n is of a cluster"),
    ] {
        let said = limits(&proxy, command, args);
        assert_eq!((said.code, said.stderr.contains(words)), (code, true), "{command} {args:?}: {said:?}");
    }
    let nobody = fetchr(&["limits", "ls", "--state-dir", "/nonexistent", "--admin-port", "1"]);
    assert_eq!((nobody.code, nobody.stderr.contains("no proxy answers on its admin port")), (4, true), "{nobody:?}");
}

#[test]
fn limits_are_simulated_with_a_load_or_a_log() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let limit = "rateLimits: [{name: rate, limit: {requests: 10, per: 1s, burst: 10}, key: [{source: ClientIP}]}]";
    let policy = file("policy.yaml", &policy("one").replace("headers: {response: {set: [{name: x-from, value: one}]}}", limit));
    let svg = folder.path().join("plot.svg");
    let simulate = |args: &[&str]| fetchr(&[&["limits", "simulate", "-f", &policy], args].concat());
    let load = ["--rate", "100/s", "--clients", "2", "--for", "10s", "--svg", svg.to_str().unwrap()];
    let json = simulate(&[&load[..], &["-o", "json"]].concat()).json();
    // Of each client 10 at once, and 10 a second for all but the last moment of ten seconds.
    let admitted = json["admitted"].as_u64().unwrap();
    assert!((210..=220).contains(&admitted) && json["requests"] == 1000, "{json}");
    assert_eq!((json["seconds"].as_array().map(Vec::len), &json["limits"][0]["allowed"]), (Some(10), &json["admitted"]));
    assert!(std::fs::read_to_string(&svg).unwrap().starts_with("<svg "));
    let text = simulate(&load);
    assert!(text.code == 0 && text.stdout.contains(&format!("1000 requests: {admitted} admitted, ")), "{text:?}");
    let pods = simulate(&[&load[..], &["--pods", "4", "-o", "json"]].concat()).json();
    assert!(pods["admitted"].as_u64().unwrap() > admitted, "each pod counts for itself: {pods}");
    let line = |second: u32| format!("{{\"time\": {second}, \"path\": \"/\", \"client\": \"10.0.0.9\"}}\n");
    let log = file("log", &(line(0).repeat(12) + "\n" + &line(5)));
    let played = simulate(&["--log", &log, "-o", "json"]).json();
    assert_eq!((&played["admitted"], &played["denied"], &played["seconds"][0]["denied"]), (&11.into(), &2.into(), &2.into()));
    let wrong = simulate(&["--log", &file("wrong", &(line(0) + "{}"))]);
    assert!(wrong.code == 1 && wrong.stderr.contains("wrong:2") && wrong.stderr.contains("time"), "{wrong:?}");
    for args in
        [&["--rate", "0/s"][..], &["--rate", "1000000/s", "--for", "24h"], &["--url", "/a"], &["--log", "a", "--rate", "1/s"]]
    {
        assert_eq!(simulate(args).code, 2, "{args:?}");
    }
}
