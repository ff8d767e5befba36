//! A Redis that speaks TLS and knows users: what is right works, what is wrong is said, and traffic goes on.

use std::fs;

use crds::proxy::{Certificate, FetchrProxySpec};
use serde_json::{Value, json};

use crate::{
    pki::Pki,
    purge::Site,
    redis_modes::{by_nodes, by_sentinels, connected, purge, purge_until, share, two_pods},
    redis_server::{Cluster, Sentinels, Server, Tls},
    support::{ms, until},
};

const ALL: &str = r#"[{"name": "all", "cache": {"tags": {"header": "xkey"}}}]"#;
const FIELDS: &str = "cache-control: max-age=600\r\nxkey: news\r\n";
pub(crate) const LOCAL: [&str; 2] = ["127.0.0.1", "localhost"];
const PROXIES: &str = include_str!("../../../docs/proxies.md");

/// What a server shows, and whose clients it believes.
pub(crate) fn server_tls(pki: &Pki, certificate: &Certificate) -> Tls {
    let file = |file: &Option<String>| file.clone().unwrap();
    Tls { certificate: file(&certificate.certificate_file), key: file(&certificate.key_file), ca: file(&pki.ca().file) }
}

/// A server of these hosts, and the `tls` of who may use it.
pub(crate) fn both(pki: &Pki) -> (Tls, Value) {
    let server = server_tls(pki, &pki.issue("redis", &LOCAL));
    let tls = json!({"ca": pki.ca(), "clientCertificate": pki.issue("sidecar", &["sidecar"])});
    (server, tls)
}

/// The command by which the documentation makes a user, of servers or of sentinels.
async fn make_user(server: &Server, of: &str) {
    let line = PROXIES.lines().find(|line| line.starts_with("ACL SETUSER") && line.contains(of));
    let line = line.unwrap().replace("shop", "*");
    server.run(&line.split(' ').collect::<Vec<_>>()).await;
    server.run(&["ACL", "LOG", "RESET"]).await;
}

const DATA: &str = "+evalsha";
const SENTINEL: &str = "+sentinel|master";

/// Purges and answers are shared, and nothing was tried that the user may not.
async fn works(mut redis: Value, tls: &Value, servers: &[&Server]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "PASSWORD\n").unwrap();
    let credentials = json!({"username": "fetchr", "passwordFile": file});
    redis["credentials"] = credentials.clone();
    redis["tls"] = tls.clone();
    if let Some(sentinel) = redis.get_mut("sentinel") {
        sentinel["credentials"] = credentials;
    }
    let sites = two_pods(&redis).await;
    share(&sites, "/a").await;
    purge_until(&sites, 2).await;
    share(&sites, "/b").await;
    for server in servers {
        let denied = server.text(&["ACL", "LOG"]).await;
        assert_eq!(denied, "", "{}", server.address());
    }
}

#[tokio::test]
async fn single_server_with_tls_and_a_user_that_may_what_the_documentation_says() {
    let pki = Pki::new();
    let (server, tls) = both(&pki);
    let server = Server::start_tls(&server, &[]).await;
    make_user(&server, DATA).await;
    works(json!({"endpoints": [server.tls_address()], "commandTimeout": "2s"}), &tls, &[&server]).await;
}

#[tokio::test]
async fn sentinels_with_tls_and_users_that_may_what_the_documentation_says() {
    let pki = Pki::new();
    let (server, tls) = both(&pki);
    let set = Sentinels::start_tls(&server).await;
    for server in &set.servers {
        make_user(server, DATA).await;
    }
    for sentinel in &set.sentinels {
        make_user(sentinel, SENTINEL).await;
    }
    let all: Vec<&Server> = set.servers.iter().chain(&set.sentinels).collect();
    works(by_sentinels(&set), &tls, &all).await;
}

#[tokio::test]
async fn cluster_with_tls_and_a_user_that_may_what_the_documentation_says() {
    let pki = Pki::new();
    let (server, tls) = both(&pki);
    let cluster = Cluster::start_tls(&server).await;
    for server in &cluster.servers {
        make_user(server, DATA).await;
    }
    works(by_nodes(&cluster), &tls, &cluster.servers.iter().collect::<Vec<_>>()).await;
}

/// A pod whose Redis is as told, whatever comes of it.
async fn pod(redis: Value) -> Site {
    let change = |spec: &mut FetchrProxySpec| {
        spec.redis = Some(serde_json::from_value(redis).unwrap());
        spec.cache.shared = Some(serde_json::from_value(json!({"maxObject": "1Ki"})).unwrap());
        spec.cache.purge.max_lag = ms(2000);
    };
    Site::with(ALL, FIELDS, None, change).await
}

#[tokio::test]
async fn what_is_wrong_is_said_and_traffic_goes_on() {
    let (pki, others) = (Pki::new(), Pki::new());
    let (right, tls) = both(&pki);
    let right = Server::start_tls(&right, &[]).await;
    let expired = Server::start_tls(&server_tls(&pki, &pki.issue_expired("expired", &LOCAL)), &[]).await;
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    fs::write(&password, "wrong\n").unwrap();
    let with = |server: &Server, field: &str, value: Value| {
        let mut tls = tls.clone();
        tls[field] = value;
        json!({"endpoints": [server.tls_address()], "tls": tls})
    };
    let nowhere = json!({"file": folder.path().join("none.crt")});
    let mut wrong_password = with(&right, "mode", json!("Enabled"));
    wrong_password["credentials"] = json!({"passwordFile": password});
    let cases = [
        ("another CA", with(&right, "ca", json!(others.ca())), "invalid peer certificate"),
        ("no file of a CA", with(&right, "ca", nowhere), "none.crt: No such file"),
        ("an expired certificate", with(&expired, "mode", json!("Enabled")), "expired"),
        ("another name", with(&right, "serverName", json!("redis.example")), "redis.example"),
        ("no certificate of its own", with(&right, "clientCertificate", Value::Null), "CertificateRequired"),
        ("one of another CA", with(&right, "clientCertificate", json!(others.issue("x", &["x"]))), "fatal alert"),
        ("no TLS", json!({"endpoints": [right.tls_address()]}), "127.0.0.1"),
        ("TLS where none is spoken", json!({"endpoints": [right.address()], "tls": tls.clone()}), "TLS with 127.0.0.1"),
        ("a wrong password", wrong_password, "Password authentication failed"),
    ];
    // At the same time: each is tried for 5 s.
    let each = cases.map(async |(what, redis, words)| {
        let site = pod(redis).await;
        assert_eq!((site.get("/").await, site.get("/").await), ("answer 1".to_owned(), "answer 1".to_owned()), "{what}");
        let answer = site.order("secret", r#"{"all": true}"#).await;
        assert!(answer.status == 503 && answer.text().contains(words), "{what}: {}", answer.text());
        assert_eq!(site.proxy.metric("fetchr_cache_shared_connected "), 0.0, "{what}");
    });
    futures::future::join_all(each).await;
}

#[tokio::test]
async fn certificates_are_read_again_for_each_connection() {
    let (before, after) = (Pki::new(), Pki::new());
    let (server, tls) = both(&before);
    let server = Server::start_tls(&server, &[]).await;
    let site = pod(json!({"endpoints": [server.tls_address()], "tls": tls.clone(), "commandTimeout": "2s"})).await;
    connected(&site).await;
    let (new, new_tls) = both(&after);
    let all = ["CONFIG", "SET", "tls-cert-file", &new.certificate, "tls-key-file", &new.key, "tls-ca-cert-file", &new.ca];
    server.run(&all).await;
    server.text(&["CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes"]).await;
    server.text(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    until("it is refused", async || site.proxy.metric("fetchr_cache_purge_log_failures_total") >= 2.0).await;
    assert_eq!(site.get("/").await, "answer 1");
    let path = |tls: &Value, pointer: &str| tls.pointer(pointer).unwrap().as_str().unwrap().to_owned();
    for file in ["/ca/file", "/clientCertificate/certificateFile", "/clientCertificate/keyFile"] {
        fs::copy(path(&new_tls, file), path(&tls, file)).unwrap();
    }
    connected(&site).await;
    assert!(purge(&site).await.is_some());
}
