//! A Redis that lets pods in no more: its password, or its certificate, is another one.

use std::{fs, path::Path, time::Instant};

use crds::proxy::Certificate;
use serde_json::{Value, json};

use crate::{
    limits_shared::{Pods, ask, counts_in_redis, failed},
    pki::Pki,
    redis_server::Server,
    redis_tls::{LOCAL, both, server_tls},
    support::until,
};

/// Connections are made anew.
async fn cut(server: &Server) {
    server.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
}

/// Clients get what remained of five, two of which were used, and the reason is counted.
async fn fails(pods: &Pods, reason: &str, what: &str) {
    let before = failed(&pods.proxies[0], reason);
    assert_eq!(pods.passed("/five", 10).await, 3, "{what}: as many as remained");
    until("the reason is counted", async || {
        assert_eq!(ask(&pods.proxies[0], "/five").await.status, 429, "{what}");
        failed(&pods.proxies[0], reason) > before
    })
    .await;
}

/// Redis counts again, and says what it did before; after so many seconds.
async fn mended(pods: &Pods, what: &str, saw: &str) {
    let begun = Instant::now();
    counts_in_redis(&pods.proxies[0]).await;
    let right = begun.elapsed();
    let more = pods.passed("/five", 10).await;
    assert!(more <= 3, "{what}: {more}");
    println!("| {what} | 200 and 429; {saw} | 5 / 5, and {more} more afterwards | {right:.1?} |");
}

/// For the user fetchr, whose password is in a file.
fn as_fetchr(server: &Server, password: &Path) -> Value {
    let credentials = json!({"username": "fetchr", "passwordFile": password});
    json!({"endpoints": [server.address()], "commandTimeout": "5s", "credentials": credentials})
}

#[tokio::test]
async fn password_that_changes_is_a_store_that_forbids_until_the_new_one_is_known() {
    let server = Server::start(&[]).await;
    server.run(&["ACL", "SETUSER", "fetchr", "on", ">one", "~*", "&*", "+@all"]).await;
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    fs::write(&password, "one\n").unwrap();
    let pods = Pods::start(1, &as_fetchr(&server, &password), &json!({})).await;
    pods.spend("/five", 2).await;
    server.run(&["ACL", "SETUSER", "fetchr", "resetpass", ">two"]).await;
    counts_in_redis(&pods.proxies[0]).await;
    assert_eq!(failed(&pods.proxies[0], "forbidden"), 0.0, "connections stay");
    cut(&server).await;
    fails(&pods, "forbidden", "another password").await;
    fs::write(&password, "two\n").unwrap();
    mended(&pods, "password rotated, and connections cut", "`forbidden`").await;
}

#[tokio::test]
async fn user_that_is_gone_is_a_store_that_forbids_until_there_is_one_again() {
    let server = Server::start(&[]).await;
    let make = ["ACL", "SETUSER", "fetchr", "on", ">one", "~*", "&*", "+@all"];
    server.run(&make).await;
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    fs::write(&password, "one\n").unwrap();
    let pods = Pods::start(1, &as_fetchr(&server, &password), &json!({})).await;
    pods.spend("/five", 2).await;
    server.run(&["ACL", "DELUSER", "fetchr"]).await;
    fails(&pods, "forbidden", "no such user").await;
    server.run(&make).await;
    mended(&pods, "user deleted", "`forbidden`").await;
}

/// The server shows another certificate from now on, on new connections.
async fn show(server: &Server, pki: &Pki, certificate: &Certificate) {
    let shown = server_tls(pki, certificate);
    server.run(&["CONFIG", "SET", "tls-cert-file", &shown.certificate, "tls-key-file", &shown.key]).await;
    cut(server).await;
}

#[tokio::test]
async fn certificate_that_is_rotated_is_taken_and_one_that_is_wrong_is_a_store_without_tls() {
    let (pki, others) = (Pki::new(), Pki::new());
    let (tls, client): (_, Value) = both(&pki);
    let right = pki.issue("next", &LOCAL);
    for (what, wrong) in [
        ("certificate of another CA", others.issue("other", &LOCAL)),
        ("certificate of another name", pki.issue("elsewhere", &["redis.example"])),
        ("certificate that has expired", pki.issue_expired("old", &LOCAL)),
    ] {
        let server = Server::start_tls(&tls, &[]).await;
        let redis = json!({"endpoints": [server.tls_address()], "commandTimeout": "5s", "tls": client});
        let pods = Pods::start(1, &redis, &json!({})).await;
        show(&server, &pki, &right).await;
        counts_in_redis(&pods.proxies[0]).await;
        assert_eq!(failed(&pods.proxies[0], "tls"), 0.0, "a new one of the same CA is as good");
        pods.spend("/five", 2).await;
        show(&server, &pki, &wrong).await;
        fails(&pods, "tls", what).await;
        show(&server, &pki, &right).await;
        mended(&pods, what, "`tls`").await;
    }
}
