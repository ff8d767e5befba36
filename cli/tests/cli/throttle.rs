//! `fetchr throttle` with a proxy that runs.

use crate::{
    run::{Proxy, policy},
    support::{Said, fetchr},
};

const SECTION: &str = "throttle: {concurrency: {type: Fixed, limit: 7}}";

fn throttle(proxy: &Proxy, command: &str, args: &[&str]) -> Said {
    let (port, state) = (proxy.port_of("admin").port().to_string(), proxy.state().to_str().unwrap());
    fetchr(&[&["throttle", command, "--admin-port", &port, "--state-dir", state], args].concat())
}

#[test]
fn status_and_watch_show_the_throttles_of_the_proxy() {
    let proxy = Proxy::start(&policy("one").replace("headers: {response: {set: [{name: x-from, value: one}]}}", SECTION));
    proxy.get("/a");
    let said = throttle(&proxy, "status", &[]);
    let line = said.stdout.lines().nth(1).unwrap_or_default().split_whitespace().collect::<Vec<_>>();
    assert_eq!((said.code, line), (0, vec!["default/headers/all", "Enforce", "7", "0", "0", "1", "0", "0"]), "{said:?}");
    let json = throttle(&proxy, "status", &["-o", "json"]).json();
    assert_eq!((json[0]["limit"].as_u64(), json[0]["requests"]["admitted"].as_u64()), (Some(7), Some(1)), "{json}");
    let watched = throttle(&proxy, "watch", &["--times", "3", "--every", "10ms"]);
    assert_eq!((watched.code, watched.stdout.matches("default/headers/all").count()), (0, 3), "{watched:?}");
}

#[test]
fn nothing_to_show_and_nobody_to_ask_is_said() {
    let proxy = Proxy::start(&policy("one"));
    assert_eq!(throttle(&proxy, "status", &[]).stdout, "No rule has a section throttle.\n");
    let nobody = fetchr(&["throttle", "status", "--state-dir", "/nonexistent", "--admin-port", "1"]);
    assert_eq!((nobody.code, nobody.stderr.contains("no proxy answers on its admin port")), (4, true), "{nobody:?}");
}
