//! The cluster of the tests is a real one: pods, Services, DNS, logs, exec.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use e2e::namespace::Namespace;
use e2e::origin::get::Answer;
use e2e::origin::load::Report;
use e2e::testbed;

const CLIENT: &str = "
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  containers:
  - {name: app, image: 'localhost/fetchr-origin:dev', imagePullPolicy: Never}
";

#[tokio::test]
async fn service_name_resolves_and_the_clients_address_is_kept() {
    let cluster = testbed::cluster().await.unwrap();
    let namespace = Namespace::create(&cluster, "node", &[]).await.unwrap();
    namespace.apply(&testbed::application("web", 1, "")).await.unwrap();
    namespace.apply(CLIENT).await.unwrap();
    namespace.ready_pods("app=web", 1).await.unwrap();
    let client = namespace.ready_pods("app=client", 1).await.unwrap().remove(0);

    let load = ["fetchr-origin", "load", "--url", "http://web/bytes/9", "--rate", "50", "--duration", "0.4"];
    let report: Report = serde_json::from_str(&client.exec("app", &load).await.unwrap()).unwrap();
    assert_eq!((report.sent, report.ok), (20, 20), "{report:?}");
    let answer: Answer =
        serde_json::from_str(&client.exec("app", &["fetchr-origin", "get", "http://web/echo"]).await.unwrap()).unwrap();
    let seen: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(seen["peer"], client.ip().unwrap().to_string());
    namespace.delete().await.unwrap();
}

#[tokio::test]
async fn pod_is_reached_directly_and_its_log_is_read() {
    let cluster = testbed::cluster().await.unwrap();
    let namespace = Namespace::create(&cluster, "node", &[]).await.unwrap();
    namespace.apply(CLIENT).await.unwrap();
    let pod = namespace.ready_pods("app=client", 1).await.unwrap().remove(0);

    let seen = pod.get(8080, "/echo?a=1").await.unwrap().json().unwrap();
    assert_eq!(seen["path"], "/echo?a=1");
    assert_eq!(pod.log("app").await.unwrap(), "listening on 0.0.0.0:8080\n");
    let error = pod.exec("app", &["fetchr-origin", "--wrong"]).await.unwrap_err().to_string();
    assert!(error.contains("--wrong"), "{error}");
    namespace.delete().await.unwrap();
}
