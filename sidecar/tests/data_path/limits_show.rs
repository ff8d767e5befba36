//! What the admin port shows of limits that real requests have met, and counts that it forgets.

use serde_json::{Value, json};

use crate::{purge::Site, redis_server::Server, support::until};

/// A token a minute, so that none comes while a test runs.
fn rules(scope: &str) -> String {
    let limit = json!({
        "name": "per-user", "scope": scope, "limit": {"requests": 1, "per": "1m", "burst": 2},
        "key": [{"source": "Header", "name": "x-user"}, {"source": "Header", "name": "x-api-key"}],
        "overrides": [{"values": ["anna", "*"], "limit": {"requests": 3, "per": "1m"}}],
    });
    let shadow = json!({"name": "shadow", "mode": "Shadow", "limit": {"requests": 1, "per": "1h"}});
    json!([{"name": "all", "rateLimits": [limit, shadow]}]).to_string()
}

const LIMIT: &str = "shop/test/all/per-user";

/// The status of so many requests of a user.
async fn ask(site: &Site, user: &str, requests: usize) -> Vec<u16> {
    let request = format!("GET / HTTP/1.1\r\nhost: a.example\r\nx-user: {user}\r\nx-api-key: s3cret\r\n\r\n");
    let mut all = Vec::new();
    for _ in 0..requests {
        all.push(site.proxy.ask(&request).await.status);
    }
    all
}

async fn shown(site: &Site, target: &str) -> Value {
    let answer = site.show(target).await;
    assert_eq!(answer.status, 200, "{target}: {}", answer.text());
    serde_json::from_str(answer.text()).unwrap()
}

async fn count(site: &Site, user: &str) -> Value {
    shown(site, &format!("/limits/count?limit={LIMIT}&value={user}&value=s3cret")).await
}

async fn reset(site: &Site, token: &str, body: &Value) -> (u16, String) {
    let (mut client, body) = (site.admin_client().await, body.to_string());
    let head = format!("POST /limits/reset HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n");
    client.send(&format!("{head}content-length: {}\r\n\r\n{body}", body.len())).await;
    let answer = client.response().await;
    (answer.status, answer.text().to_owned())
}

#[tokio::test]
async fn limits_are_listed_with_what_they_decided() {
    let site = Site::start(&rules("Pod"), "", None).await;
    assert_eq!(ask(&site, "bert", 3).await, [200, 200, 429]);
    let list = shown(&site, "/limits").await;
    let [per_user, shadow] = &list["limits"].as_array().unwrap()[..] else { panic!("{list}") };
    assert_eq!((&per_user["name"], &per_user["limit"]["burst"]), (&json!(LIMIT), &json!(2)));
    assert_eq!((&per_user["mode"], &per_user["scope"], &per_user["overrides"]), (&json!("Enforce"), &json!("Pod"), &json!(1)));
    assert_eq!(per_user["decisions"], json!([{"source": "Pod", "allowed": 2, "denied": 1}]));
    assert_eq!((&shadow["mode"], &shadow["decisions"][0]["allowed"]), (&json!("Shadow"), &json!(1)));
    assert_eq!(list["counts"], 2);
    site.proxy.apply(&rules("Pod"));
    let again = shown(&site, "/limits").await;
    assert_eq!(again["limits"][0]["decisions"], per_user["decisions"], "a reload forgets no decision");
}

#[tokio::test]
async fn count_is_shown_and_forgotten_by_the_values_of_its_key() {
    let site = Site::start(&rules("Pod"), "", None).await;
    assert_eq!(ask(&site, "bert", 3).await, [200, 200, 429]);
    assert_eq!(ask(&site, "anna", 1).await, [200]);
    let bert = count(&site, "bert").await;
    assert_eq!((&bert["counted"], &bert["quota"], &bert["remaining"]), (&json!("Pod"), &json!(2), &json!(0)));
    assert!(matches!(bert["nextSeconds"].as_f64(), Some(1.0..=60.0)), "{bert}");
    assert!(matches!(bert["fullSeconds"].as_f64(), Some(61.0..=120.0)), "{bert}");
    let anna = count(&site, "anna").await;
    assert_eq!((&anna["quota"], &anna["remaining"]), (&json!(3), &json!(2)), "an override holds");
    let named = |values: &[&str]| json!({"limit": LIMIT, "values": values});
    assert_eq!(reset(&site, "wrong", &named(&["bert", "s3cret"])).await.0, 401);
    assert_eq!(count(&site, "bert").await["remaining"], 0);
    assert_eq!(reset(&site, "secret", &named(&["bert", "s3cret"])).await, (200, r#"{"found":true}"#.to_owned()));
    assert_eq!(count(&site, "bert").await["remaining"], 2);
    assert_eq!(count(&site, "anna").await["remaining"], 2, "it was another's");
    assert_eq!(ask(&site, "bert", 1).await, [200]);
    assert_eq!(reset(&site, "secret", &named(&["nobody", ""])).await, (200, r#"{"found":false}"#.to_owned()));
}

#[tokio::test]
async fn wrong_names_of_counts_say_what_is_wrong() {
    let site = Site::start(&rules("Pod"), "", None).await;
    for (query, status, words) in [
        ("limit=shop/test/all/none", 404, "no limit shop/test/all/none is in force"),
        ("limit=shop/test/all/per-user&value=a", 400, "has 2 parts, and 1 values are given"),
        ("value=a", 400, "limit is missing"),
        ("limits=a", 400, "is unknown"),
    ] {
        let answer = site.show(&format!("/limits/count?{query}")).await;
        assert!(answer.status == status && answer.text().contains(words), "{query}: {} {}", answer.status, answer.text());
    }
    let (status, why) = reset(&site, "secret", &json!({"limits": LIMIT})).await;
    assert!(status == 400 && why.contains("unknown field"), "{why}");
}

#[tokio::test]
async fn keys_that_were_denied_are_listed_and_secrets_are_not() {
    let site = Site::start(&rules("Pod"), "", None).await;
    ask(&site, "bert", 7).await;
    ask(&site, "carl", 3).await;
    ask(&site, "dora", 1).await;
    let top = shown(&site, "/limits/top").await;
    let keys = top["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 2, "{top}");
    assert_eq!((&keys[0]["values"][0], &keys[0]["denied"], &keys[0]["remaining"]), (&json!("bert"), &json!(5), &json!(0)));
    assert_eq!((&keys[1]["values"][0], &keys[1]["denied"]), (&json!("carl"), &json!(1)));
    assert!(keys[0]["values"][1].as_str().unwrap().starts_with("sha256:") && !top.to_string().contains("s3cret"), "{top}");
    assert_eq!(shown(&site, "/limits/top?most=1&order=left").await["keys"].as_array().unwrap().len(), 1);
    assert_eq!(shown(&site, "/limits/top?limit=shop/test/all/shadow").await["keys"], json!([]));
    assert_eq!(site.show("/limits/top?order=worst").await.status, 400);
}

#[tokio::test]
async fn count_that_pods_share_is_asked_of_redis_and_forgotten_there() {
    let mut server = Server::start(&[]).await;
    let address = server.address().to_string();
    let redis = serde_json::from_value(json!({"endpoints": [address], "commandTimeout": "5s"})).unwrap();
    let site = Site::with(&rules("Shared"), "", None, |spec| spec.redis = Some(redis)).await;
    until("Redis is asked", async || site.show(&format!("/limits/count?limit={LIMIT}&value=x&value=y")).await.status == 200)
        .await;
    assert_eq!(ask(&site, "bert", 3).await, [200, 200, 429]);
    let bert = count(&site, "bert").await;
    assert_eq!((&bert["counted"], &bert["remaining"]), (&json!("Store"), &json!(0)));
    let named = json!({"limit": LIMIT, "values": ["bert", "s3cret"]});
    assert_eq!(reset(&site, "secret", &named).await, (200, r#"{"found":true}"#.to_owned()));
    assert_eq!(count(&site, "bert").await["remaining"], 2);
    assert_eq!(ask(&site, "bert", 3).await, [200, 200, 429]);
    server.kill();
    let (status, why) = reset(&site, "secret", &named).await;
    assert!(status == 503 && why.starts_with("the store of shared limits does not answer: "), "{status} {why}");
}
