//! `fetchr explain` by files.

use crate::support::{command, fetchr, run_with};

const WEB: &str = r#"
apiVersion: fetchr.sh/v1alpha1
kind: FetchrProxy
metadata: {name: web, namespace: shop}
spec: {}
---
apiVersion: fetchr.sh/v1alpha1
kind: FetchrPolicy
metadata: {name: floor, namespace: fetchr-system}
spec:
  targetRefs: [{kind: Namespace, name: "*"}]
  rules:
  - name: all
    headers: {response: {set: [{name: x-from, value: platform}]}}
    rateLimits: [{name: everyone, limit: {requests: 1000, per: 1s}}]
---
apiVersion: fetchr.sh/v1alpha1
kind: FetchrPolicy
metadata: {name: catalogue, namespace: shop}
spec:
  targetRefs: [{kind: Deployment, name: catalogue}]
  rules:
  - name: products
    matches: [{path: {type: Prefix, value: /products}, methods: [GET]}]
    headers: {response: {set: [{name: x-from, value: catalogue}]}}
  - name: gold
    matches: [{headers: [{name: x-tier, value: gold}]}]
    timeouts: {request: 5s}
"#;

fn explain(args: &[&str]) -> String {
    let mut all = vec!["explain"];
    all.extend(args);
    all.extend(["-f", "-"]);
    let said = run_with(&mut command(&all), WEB);
    assert_eq!(said.code, 0, "{said:?}");
    said.stdout
}

#[test]
fn sections_that_apply_come_first_and_the_others_say_why_not() {
    let table = explain(&["GET", "http://shop.example/products/7", "--workload", "Deployment/catalogue"]);
    insta::assert_snapshot!(table, @r"
    GET shop.example/products/7 (Inbound, client 127.0.0.1)

    Applies
    SECTION                POLICY                RULE       ATTACHED TO            MODE
    headers                shop/catalogue        products   Deployment catalogue   Enforce
    rateLimits: everyone   fetchr-system/floor   all        the platform           Enforce

    Does not apply
    POLICY                RULE   ATTACHED TO            WHY NOT
    shop/catalogue        gold   Deployment catalogue   matches[0]: headers[0] is not met
    fetchr-system/floor   all    the platform           headers: shop/catalogue/products wins
    ");
}

#[test]
fn policy_of_another_workload_is_named_with_the_reason() {
    insta::assert_snapshot!(explain(&["POST", "/cart", "-o", "wide"]), @r"
    POST localhost/cart (Inbound, client 127.0.0.1)

    Applies
    SECTION                POLICY                RULE   ATTACHED TO    MODE      MATCH
    headers                fetchr-system/floor   all    the platform   Enforce   every request
    rateLimits: everyone   fetchr-system/floor   all    the platform   Enforce   every request

    Does not apply
    POLICY           RULE    ATTACHED TO            WHY NOT
    shop/catalogue   (all)   Deployment catalogue   the pod has no workload and behind no Service
    ");
}

#[test]
fn sections_about_tries_are_won_each_for_itself() {
    const UPSTREAMS: &str = r#"
apiVersion: fetchr.sh/v1alpha1
kind: FetchrPolicy
metadata: {name: upstreams, namespace: shop}
spec:
  targetRefs: [{kind: FetchrProxy, name: web}]
  rules:
  - name: all
    retry: {}
    circuitBreaker: {mode: Shadow, consecutiveFailures: 5}
    failover: {upstream: "http://standby.example"}
  - name: reads
    matches: [{methods: [GET]}]
    retry: {attempts: 3}
    loadBalancing: {}
"#;
    let said = run_with(&mut command(&["explain", "GET", "/", "-f", "-"]), &format!("{WEB}---{UPSTREAMS}"));
    insta::assert_snapshot!(said.stdout, @r"
    GET localhost/ (Inbound, client 127.0.0.1)

    Applies
    SECTION                POLICY                RULE    ATTACHED TO       MODE
    loadBalancing          shop/upstreams        reads   its FetchrProxy   Enforce
    retry                  shop/upstreams        reads   its FetchrProxy   Enforce
    circuitBreaker         shop/upstreams        all     its FetchrProxy   Shadow
    failover               shop/upstreams        all     its FetchrProxy   Enforce
    headers                fetchr-system/floor   all     the platform      Enforce
    rateLimits: everyone   fetchr-system/floor   all     the platform      Enforce

    Does not apply
    POLICY           RULE    ATTACHED TO            WHY NOT
    shop/upstreams   all     its FetchrProxy        retry: shop/upstreams/reads wins
    shop/catalogue   (all)   Deployment catalogue   the pod has no workload and behind no Service
    ");
}

#[test]
fn header_fields_are_matched_and_json_says_the_same() {
    let text = explain(&["get", "/", "-H", "X-Tier: gold", "--workload", "Deployment/catalogue", "-o", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    let gold = answer["rules"].as_array().unwrap().iter().find(|rule| rule["rule"] == "gold").expect("the rule is there");
    assert_eq!((gold["matched"].as_str(), &gold["sections"][0]["applies"]), (Some("matches[0]"), &true.into()), "{text}");
}

#[test]
fn example_of_the_laptop_is_explained() {
    let said = fetchr(&["explain", "GET", "http://localhost/api/items", "-f", "examples/local/"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.stdout.contains("rateLimits: per-client"), "{}", said.stdout);
}

#[test]
fn wrong_questions_say_what_would_be_right() {
    let says = |args: &[&str], code: i32, words: &str| {
        let other = "apiVersion: fetchr.sh/v1alpha1\nkind: FetchrProxy\nmetadata: {name: web, namespace: store}\nspec: {}\n";
        let said = run_with(&mut command(args), &format!("{WEB}---\n{other}"));
        assert_eq!(said.code, code, "{said:?}");
        assert!(said.stderr.contains(words), "{}", said.stderr);
    };
    says(&["explain", "GET", "/", "-f", "-"], 2, "choose one by --proxy NAME");
    says(&["explain", "GET", "/", "-f", "-", "--proxy", "nobody"], 1, "the documents have shop/web, store/web");
    says(&["explain", "GET", "ftp://x/", "-f", "-", "--proxy", "shop/web", "-n", "shop"], 2, "http://shop.example");
    says(&["explain", "GET", "/", "-H", "nonsense"], 2, "name: value");
    says(&["explain", "GET", "/"], 2, "no documents were given");
}
