//! Requests to a Service go to its pods one by one, and what its ports speak is known.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use std::time::Duration;

use anyhow::ensure;
use crds::FetchrPolicy;
use e2e::images;
use e2e::namespace::{Namespace, Pod};
use e2e::origin::greet::{GREETING, Heard};
use e2e::origin::load::Report;
use e2e::testbed::{application, with_namespace};
use e2e::wait::eventually;
use kube::api::{Patch, PatchParams};
use serde_json::json;

const PORT: u16 = 8080;
const DEADLINE: Duration = Duration::from_secs(20);
const ROLLED: Duration = Duration::from_secs(90);

/// One connection over HTTP/2, which the node would take to one pod.
const LOAD: [&str; 9] = ["fetchr-origin", "load", "--http2", "--url", "http://web/bytes/10", "--rate", "60", "--duration", "1"];

/// Its requests to Services pass the sidecar.
const PROXY: &str = "
apiVersion: fetchr.sh/v1alpha1
kind: FetchrProxy
metadata: {name: client}
spec:
  selector: {matchLabels: {app: client}}
  interception: {outbound: {ports: [80, 3306, 3307]}}
";

#[tokio::test]
async fn requests_of_one_connection_to_a_service_are_spread_and_none_is_lost_when_pods_go_or_fail() {
    with_namespace(async |namespace| {
        namespace.apply(&application("web", 3, "")).await.unwrap();
        let client = client(&namespace).await;
        spread(&namespace, "web").await;
        let servers = namespace.ready_pods("app=web", 3).await.unwrap();
        Box::pin(each_pod_gets_its_share(&client, &servers)).await;

        let roll = async {
            namespace.kubectl(&["rollout", "restart", "deployment/web"], "").await.unwrap();
            eventually("the old pods are gone", ROLLED, async || {
                for pod in &servers {
                    ensure!(pod.refreshed().await.is_err(), "{} is there", pod.name());
                }
                Ok(())
            })
            .await
            .unwrap();
        };
        Box::pin(answered_during(&client, roll)).await;
        let new = namespace.ready_pods("app=web", 3).await.unwrap();
        Box::pin(each_pod_gets_its_share(&client, &new)).await;

        // Ready by another port, it refuses all that the Service sends.
        let bad = format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: bad, labels: {{app: web}}}}
spec:
  containers:
  - {{name: app, image: '{}', imagePullPolicy: Never, env: [{{name: ORIGIN_LISTEN, value: '0.0.0.0:9090'}}]}}
",
            images::ORIGIN
        );
        namespace.apply(&bad).await.unwrap();
        let left_out = eventually("the pod that fails is left out", DEADLINE, async || {
            let page = client.get(4621, "/metrics").await?;
            let event = "section=\"loadBalancing\",event=\"ejected\"";
            ensure!(page.text().lines().any(|line| line.contains(event)), "no event {event}");
            Ok(())
        });
        Box::pin(answered_during(&client, async { left_out.await.unwrap() })).await;
    })
    .await;
}

#[tokio::test]
async fn server_of_a_service_that_speaks_first_is_not_waited_for() {
    with_namespace(async |namespace| {
        let greeter = format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: greeter, labels: {{app: greeter}}}}
spec:
  containers:
  - {{name: app, image: '{}', imagePullPolicy: Never, args: [greet], ports: [{{containerPort: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: told}}
spec:
  selector: {{app: greeter}}
  ports: [{{port: 3306, targetPort: 8080, appProtocol: mysql}}]
---
apiVersion: v1
kind: Service
metadata: {{name: silent}}
spec:
  selector: {{app: greeter}}
  ports: [{{port: 3307, targetPort: 8080}}]
",
            images::ORIGIN
        );
        namespace.apply(&greeter).await.unwrap();
        namespace.ready_pods("app=greeter", 1).await.unwrap();
        let client = client(&namespace).await;
        let hear = async |address: &str| {
            let heard: Heard = serde_json::from_str(&client.exec("app", &["fetchr-origin", "hear", address]).await?)?;
            ensure!(heard.greeting == GREETING, "{heard:?}");
            anyhow::Ok(heard.milliseconds)
        };
        let silent = eventually("the Service is there", DEADLINE, async || hear("silent:3307").await).await.unwrap();
        assert!(silent >= 200, "the client may have wanted to speak first: {silent} ms");
        eventually("the word of the Service has come", DEADLINE, async || {
            let page = client.get(4621, "/metrics").await?;
            ensure!(page.text().lines().any(|line| line == "fetchr_services 1"), "it has not");
            Ok(())
        })
        .await
        .unwrap();
        // The very first connection, of which nothing could be learned before.
        let told = hear("told:3306").await.unwrap();
        assert!(told < 200, "{told} ms");
    })
    .await;
}

async fn client(namespace: &Namespace) -> Pod {
    namespace.apply(PROXY).await.unwrap();
    namespace.apply(&application("client", 1, "fetchr.sh/inject: enabled")).await.unwrap();
    namespace.ready_pods("app=client", 1).await.unwrap().remove(0)
}

/// Spreads the client's requests to a host.
async fn spread(namespace: &Namespace, host: &str) {
    let balancing = json!({"policy": "RoundRobin", "ejection": {"consecutiveFailures": 2}});
    let rule = json!({"name": "all", "matches": [{"hosts": [host]}], "loadBalancing": balancing, "retry": {"attempts": 3}});
    let policy = json!({
        "apiVersion": "fetchr.sh/v1alpha1",
        "kind": "FetchrPolicy",
        "metadata": {"name": "spread"},
        "spec": {"targetRefs": [{"kind": "Deployment", "name": "client"}], "direction": "Outbound", "rules": [rule]},
    });
    let policies = namespace.api::<FetchrPolicy>();
    policies.patch("spread", &PatchParams::apply("e2e").force(), &Patch::Apply(policy)).await.unwrap();
}

async fn load(client: &Pod) -> anyhow::Result<u64> {
    let report: Report = serde_json::from_str(&client.exec("app", &LOAD).await?)?;
    report.check()?;
    Ok(report.ok)
}

async fn each_pod_gets_its_share(client: &Pod, servers: &[Pod]) {
    eventually("each pod gets its share", DEADLINE, async || {
        let before = came(servers).await?;
        let sent = load(client).await?;
        let shares: Vec<u64> = came(servers).await?.iter().zip(before).map(|(after, before)| after - before).collect();
        ensure!(shares.iter().all(|share| *share * 4 >= sent), "{shares:?} of {sent}");
        Ok(())
    })
    .await
    .unwrap();
}

/// Sends load in rounds until `change` is done, and one more.
async fn answered_during(client: &Pod, change: impl Future<Output = ()>) {
    tokio::pin!(change);
    let mut answered = 0;
    loop {
        let round = load(client);
        tokio::pin!(round);
        tokio::select! {
            () = &mut change => {
                answered += round.await.unwrap() + load(client).await.unwrap();
                return println!("{answered} requests, all answered");
            }
            ok = &mut round => answered += ok.unwrap(),
        }
    }
}

/// How many numbered requests each pod has had.
async fn came(pods: &[Pod]) -> anyhow::Result<Vec<u64>> {
    let mut counts = Vec::new();
    for pod in pods {
        let seen = pod.get(PORT, "/seen").await?.json()?;
        counts.push(seen["count"].as_u64().unwrap_or_default() + seen["repeated"].as_u64().unwrap_or_default());
    }
    Ok(counts)
}
