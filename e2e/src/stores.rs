//! Stores that pods share, as pods of a test's own: Redis in each of its modes, and S3.

use anyhow::Context;
use serde_json::{Value, json};

use crate::images;
use crate::namespace::{Namespace, Pod};
use crate::s3;
use crate::wait::eventually;

/// Labels of the servers that keep data.
pub const REDIS_LABELS: &str = "app=redis";
/// The name that sentinels have for their primary.
pub const PRIMARY_NAME: &str = "main";
/// Servers with sentinels: a primary and its replicas; and sentinels.
const WATCHED: usize = 3;
/// Servers of a cluster: three primaries with a replica each.
const CLUSTERED: usize = 6;
const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;
const S3_PORT: u16 = 8333;
/// Nothing on disk; the address of the pod is the one that others are told.
const SERVER: [&str; 10] =
    ["--bind", "*", "--protected-mode", "no", "--save", "", "--dir", "/tmp", "--repl-diskless-sync-delay", "0"];

/// A Redis `redis` behind a Service of that name, of which a new pod takes the place of one that is gone. It keeps nothing over a restart.
///
/// # Errors
/// It was refused, or is not ready in time.
pub async fn redis(namespace: &Namespace) -> anyhow::Result<()> {
    let template =
        json!({"metadata": {"labels": {"app": "redis"}}, "spec": {"containers": [container(&json!({"args": SERVER}))]}});
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "redis"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "redis"}}, "template": template},
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "redis"},
        "spec": {"selector": {"app": "redis"}, "ports": [{"name": "redis", "port": REDIS_PORT}]},
    });
    apply(namespace, vec![deployment, service]).await?;
    namespace.ready_pods(REDIS_LABELS, 1).await.map(drop)
}

/// A primary, two replicas and three sentinels. Returns `spec.redis` of a FetchrProxy for them.
///
/// # Errors
/// They were refused, or don't know of each other in time.
pub async fn sentinels(namespace: &Namespace) -> anyhow::Result<Value> {
    let mut items = Vec::new();
    for index in 0..WATCHED {
        let mut args = [SERVER.as_slice(), &["--replica-announce-ip", "$(POD_IP)"]].concat();
        if index > 0 {
            args.extend(["--replicaof", "redis-0", "6379"]);
        }
        items.extend(pod_with_name("redis", index, REDIS_PORT, &json!({"args": args})));
    }
    // A sentinel writes to its configuration what it learns.
    let lines = [
        "sentinel resolve-hostnames yes",
        &format!("sentinel monitor {PRIMARY_NAME} redis-0 {REDIS_PORT} 2"),
        &format!("sentinel down-after-milliseconds {PRIMARY_NAME} 2000"),
        &format!("sentinel failover-timeout {PRIMARY_NAME} 6000"),
    ];
    let start = format!(
        "echo '{}' > /tmp/sentinel.conf && exec redis-server /tmp/sentinel.conf --sentinel --bind '*' --protected-mode no",
        lines.join("\n")
    );
    for index in 0..WATCHED {
        items.extend(pod_with_name("sentinel", index, SENTINEL_PORT, &json!({"command": ["sh", "-c", start]})));
    }
    apply(namespace, items).await?;
    namespace.ready_pods(REDIS_LABELS, WATCHED).await?;
    let pods = namespace.ready_pods("app=sentinel", WATCHED).await?;
    for pod in &pods {
        let known = async || {
            let ask = ["redis-cli", "-p", &SENTINEL_PORT.to_string(), "SENTINEL", "CKQUORUM", PRIMARY_NAME];
            let answer = pod.exec("redis", &ask).await?;
            anyhow::ensure!(answer.starts_with("OK 3"), "{answer}");
            let ask = ["redis-cli", "-p", &SENTINEL_PORT.to_string(), "SENTINEL", "REPLICAS", PRIMARY_NAME];
            let replicas = pod.exec("redis", &ask).await?.lines().filter(|line| *line == "master-link-status").count();
            anyhow::ensure!(replicas == WATCHED - 1, "{replicas} replicas");
            Ok(())
        };
        eventually("a sentinel knows all others and all replicas", crate::namespace::PODS_DEADLINE, known).await?;
    }
    let endpoints: Vec<String> = (0..WATCHED).map(|index| format!("sentinel-{index}")).collect();
    Ok(json!({"mode": "Sentinel", "endpoints": endpoints, "sentinel": {"masterName": PRIMARY_NAME}}))
}

/// A Redis Cluster of three primaries with a replica each. Returns `spec.redis` of a FetchrProxy for it.
///
/// # Errors
/// It was refused, or does not serve in time.
pub async fn cluster(namespace: &Namespace) -> anyhow::Result<Value> {
    let flags = ["--cluster-enabled", "yes", "--cluster-announce-ip", "$(POD_IP)", "--cluster-node-timeout", "2000"];
    let args = [SERVER.as_slice(), &flags].concat();
    let pods = (0..CLUSTERED).flat_map(|index| pod_with_name("redis", index, REDIS_PORT, &json!({"args": args})));
    apply(namespace, pods.collect()).await?;
    let pods = namespace.ready_pods(REDIS_LABELS, CLUSTERED).await?;
    let addresses = pods.iter().map(|pod| Ok(format!("{}:{REDIS_PORT}", pod.ip()?))).collect::<anyhow::Result<Vec<_>>>()?;
    let create = ["redis-cli", "--cluster", "create", "--cluster-replicas", "1", "--cluster-yes"];
    let create: Vec<&str> = create.into_iter().chain(addresses.iter().map(String::as_str)).collect();
    pods[0].exec("redis", &create).await.context("could not make a cluster")?;
    for pod in &pods {
        let serves = async || {
            let info = pod.exec("redis", &["redis-cli", "CLUSTER", "INFO"]).await?;
            let (state, known) = ("cluster_state:ok", format!("cluster_known_nodes:{CLUSTERED}"));
            anyhow::ensure!(info.contains(state) && info.contains(&known), "{info}");
            let role = pod.exec("redis", &["redis-cli", "ROLE"]).await?;
            anyhow::ensure!(role.starts_with("master") || role.contains("connected"), "{role}");
            Ok(())
        };
        eventually("the cluster serves", crate::namespace::PODS_DEADLINE, serves).await?;
    }
    let endpoints: Vec<String> = (0..CLUSTERED).map(|index| format!("redis-{index}")).collect();
    Ok(json!({"mode": "Cluster", "endpoints": endpoints}))
}

/// The pod of the primary that has keys like this.
///
/// # Errors
/// None has.
pub async fn primary_of(namespace: &Namespace, pattern: &str) -> anyhow::Result<Pod> {
    for pod in namespace.pods(REDIS_LABELS).await? {
        let role = pod.exec("redis", &["redis-cli", "ROLE"]).await?;
        if role.starts_with("master") && !pod.exec("redis", &["redis-cli", "--scan", "--pattern", pattern]).await?.is_empty() {
            return Ok(pod);
        }
    }
    anyhow::bail!("no primary has keys like {pattern}")
}

/// A server of S3 `s3` with an empty bucket, and a Secret `s3` that may do all. Returns `spec.archive` of a FetchrProxy for it.
///
/// # Errors
/// SeaweedFS can't be installed, or is not ready in time.
pub async fn s3(namespace: &Namespace) -> anyhow::Result<Value> {
    const BUCKET: &str = "caches";
    namespace.cluster().load_image(&images::s3()?).await?;
    let config = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "s3"},
        "data": {"s3.json": s3::identities()},
    });
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s3"},
        "stringData": {"accessKeyID": s3::ACCESS_KEY, "secretAccessKey": s3::SECRET_KEY},
    });
    let flags = [&s3::FLAGS[..], &["-dir=/tmp", "-ip.bind=0.0.0.0", "-s3.config=/etc/s3/s3.json"]].concat();
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "s3", "labels": {"app": "s3"}},
        "spec": {
            // It reads flags from the environment, too, and S3_PORT would be one.
            "enableServiceLinks": false,
            "containers": [{
                "name": "s3",
                "image": images::S3,
                "imagePullPolicy": "IfNotPresent",
                "env": s3::ENVIRONMENT.map(|(name, value)| json!({"name": name, "value": value})),
                "args": flags,
                "volumeMounts": [{"name": "config", "mountPath": "/etc/s3"}],
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": S3_PORT}, "periodSeconds": 1},
            }],
            "volumes": [{"name": "config", "configMap": {"name": "s3"}}],
        },
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s3"},
        "spec": {"selector": {"app": "s3"}, "ports": [{"name": "s3", "port": S3_PORT}]},
    });
    apply(namespace, vec![config, secret, pod, service]).await?;
    let pod = namespace.ready_pods("app=s3", 1).await?.remove(0);
    let made = async || {
        let make = format!("echo 's3.bucket.create -name {BUCKET}' | weed shell -master=127.0.0.1:9333");
        pod.exec("s3", &["sh", "-c", &make]).await
    };
    eventually("S3 has a bucket", crate::namespace::PODS_DEADLINE, made).await?;
    let endpoint = format!("http://s3:{S3_PORT}");
    Ok(json!({"backend": "S3", "s3": {"bucket": BUCKET, "endpoint": endpoint, "credentials": {"secretRef": {"name": "s3"}}}}))
}

async fn apply(namespace: &Namespace, items: Vec<Value>) -> anyhow::Result<()> {
    namespace.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()).await
}

/// A container of Redis, with what is said.
fn container(with: &Value) -> Value {
    let mut container = json!({
        "name": "redis",
        "image": images::REDIS,
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "readinessProbe": {"tcpSocket": {"port": REDIS_PORT}, "periodSeconds": 1},
    });
    for (field, value) in with.as_object().into_iter().flatten() {
        container[field] = value.clone();
    }
    container
}

/// A pod by itself, which nobody makes anew, and a Service by whose name its address is found.
fn pod_with_name(app: &str, index: usize, port: u16, with: &Value) -> [Value; 2] {
    let name = format!("{app}-{index}");
    let mut container = container(with);
    container["readinessProbe"]["tcpSocket"]["port"] = port.into();
    let labels = json!({"app": app, "server": name});
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
    });
    // Servers look for each other before they are ready.
    let spec = json!({"clusterIP": "None", "publishNotReadyAddresses": true, "selector": labels, "ports": [{"name": app, "port": port}]});
    [pod, json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})]
}
