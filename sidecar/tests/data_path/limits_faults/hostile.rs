//! Keys that clients make up.

use serde_json::json;

use crate::{
    limits_shared::{Pods, rules, single},
    redis_server::Server,
    support::{Proxy, Response},
};

/// Of `http.limits.maxHead`, less the rest of a head.
const LARGEST: usize = (64 << 10) - 200;
/// Bytes of a name in Redis: what a policy says, and a digest.
const NAME: usize = 200;

async fn ask(proxy: &Proxy, value: &[u8]) -> Response {
    let mut client = proxy.client().await;
    let request = [b"GET /key HTTP/1.1\r\nhost: a\r\nx-key: ", value, b"\r\n\r\n"].concat();
    client.send(request).await;
    client.response().await
}

#[tokio::test]
async fn key_of_a_client_is_a_count_of_its_own_with_a_short_name_whatever_is_in_it() {
    let server = Server::start(&[]).await;
    let pods = Pods::start(1, &single(&server), &json!({})).await;
    let proxy = &pods.proxies[0];
    let mut all: serde_json::Value = serde_json::from_str(&rules(&json!({}))).unwrap();
    let limit = json!({"name": "key", "limit": {"requests": 1, "per": "1h"}, "key": [{"source": "Header", "name": "x-key"}], "scope": "Shared"});
    let rule = json!({"name": "key", "matches": [{"path": {"type": "Exact", "value": "/key"}}], "rateLimits": [limit]});
    all.as_array_mut().unwrap().push(rule);
    proxy.apply(&all.to_string());
    pods.passed("/five", 1).await;
    let theirs = server.text(&["KEYS", "*"]).await;
    let five = theirs.split(' ').find(|name| name.contains("five")).unwrap().to_owned();
    let long = vec![b'a'; LARGEST];
    let values: [&[u8]; 10] = [
        &long,
        &long[1..],
        &[0x80; 300],
        &[0xff, 0xfe, 0x80, 0xc3, 0x28],
        // The name of another count, whole and in parts, and what a protocol or a pattern would read in it.
        five.as_bytes(),
        b"}:five/five:0:b",
        b"{limit:shop/other}",
        b"*",
        b"$6\\r\\nFLUSHALL",
        b"' .. redis.call('FLUSHALL') .. '",
    ];
    for round in [200, 429] {
        for value in values {
            let answer = ask(proxy, value).await;
            assert_eq!(answer.status, round, "{:?}", String::from_utf8_lossy(&value[..value.len().min(40)]));
        }
    }
    let ours = server.text(&["KEYS", "fetchr:*key/key:*"]).await;
    let ours: Vec<&str> = ours.split(' ').collect();
    assert_eq!(ours.len(), values.len(), "{ours:?}");
    for name in &ours {
        assert!(name.len() <= NAME && name.is_ascii() && name.matches(['{', '}']).count() == 2, "{name}");
        let digest = name.trim_end_matches(":b").rsplit(':').next().unwrap();
        assert!(digest.len() == 32 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
    }
    assert_eq!(pods.passed("/five", 10).await, 4, "another limit's count is as it was");
    let refused = ask(proxy, &vec![b'a'; 1 << 20]).await;
    assert_eq!(refused.status, 431);
    assert_eq!(server.text(&["KEYS", "fetchr:*key/key:*"]).await.split(' ').count(), values.len());
    let longest = ours.iter().map(|name| name.len()).max().unwrap();
    println!("| keys of up to {LARGEST} bytes | names of {longest} bytes in Redis; 1 MiB: 431 |");
}
