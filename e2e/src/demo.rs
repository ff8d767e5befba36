//! The demonstration: from nothing to a policy in force, step by step, with the time of each.

mod screen;

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use crds::FetchrPolicy;
use http::StatusCode;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};

use crate::cluster::{Cluster, Lifetime};
use crate::namespace::{Namespace, Pod, Reply};
use crate::wait::eventually;
use crate::{images, install};
use screen::Screen;

const NAMESPACE: &str = "fetchr-demo";
const PORT: u16 = 8080;
const METRICS_PORT: u16 = 4621;
const IN_FORCE_DEADLINE: Duration = Duration::from_secs(30);
const MANAGER: &str = "fetchr-demo";

const APPLICATION: &str = include_str!("../demo/application.yaml");
const HEADER: &str = include_str!("../demo/header.yaml");
const LIMIT: &str = include_str!("../demo/limit.yaml");
const SHARED_LIMIT: &str = include_str!("../demo/shared-limit.yaml");
const CACHE: &str = include_str!("../demo/cache.yaml");
const REDIS: &str = include_str!("../demo/redis.yaml");
/// What is cached: its answer is another one each time.
const COUNT: &str = "/count/news";

/// Where a cluster that somebody else runs finds the images.
#[derive(Debug, Clone, clap::Args)]
pub struct Images {
    /// Operator's image, with its tag
    #[arg(long, env = "FETCHR_OPERATOR_IMAGE", default_value = images::OPERATOR)]
    operator: String,
    /// Sidecar's image, with its tag
    #[arg(long, env = "FETCHR_SIDECAR_IMAGE", default_value = images::SIDECAR)]
    sidecar: String,
    /// Test application's image, with its tag
    #[arg(long, env = "FETCHR_ORIGIN_IMAGE", default_value = images::ORIGIN)]
    origin: String,
    /// Image of Redis, with its tag
    #[arg(long, env = "FETCHR_REDIS_IMAGE", default_value = images::REDIS)]
    redis: String,
}

/// Shows it all. The cluster stays up.
///
/// # Errors
/// A step failed; the message says what the cluster says about it.
pub async fn run(images: Images) -> anyhow::Result<()> {
    let screen = Screen::new();
    let cluster = screen.step("a Kubernetes cluster", async |say| Cluster::up(Lifetime::Kept, say).await).await?;
    install_fetchr(&screen, &cluster, &images).await?;
    let (namespace, pods) = application(&screen, &cluster, &images.origin).await?;
    let [pod, other] = &pods[..] else { bail!("{} pods are ready", pods.len()) };
    header(&screen, &namespace, pod).await?;
    limit(&screen, &namespace, pod).await?;
    cache(&screen, &namespace, [pod, other], &images.redis).await?;
    purge(&screen, &namespace, [pod, other]).await?;
    shared_limit(&screen, &namespace, [pod, other]).await?;
    change(&screen, &namespace, pod).await?;
    metrics(&screen, pod).await?;
    screen.end(&look_around(&cluster, pod));
    Ok(())
}

async fn install_fetchr(screen: &Screen, cluster: &Cluster, images: &Images) -> anyhow::Result<()> {
    if cluster.state().is_none() {
        let settings = install::image_settings(&images.operator, &images.sidecar, "IfNotPresent");
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let step = async |_: screen::Say<'_>| install::chart(cluster, env!("CARGO_PKG_VERSION"), &settings).await;
        return screen.step("helm install fetchr charts/fetchr", step).await;
    }
    let build = screen.step("images of this build", async |_| install::load_images(cluster).await).await?;
    screen.step("helm install fetchr charts/fetchr", async |_| install::chart(cluster, &build, &[]).await).await
}

async fn application(screen: &Screen, cluster: &Cluster, image: &str) -> anyhow::Result<(Namespace, Vec<Pod>)> {
    let namespace = Namespace::named(cluster, NAMESPACE).await?;
    let yaml = APPLICATION.replace("{image}", image);
    let step = async |_: screen::Say<'_>| {
        // What an earlier demonstration left would hide what this one does.
        namespace.kubectl(&["delete", "fetchrpolicies,deployments", "--all", "--wait"], "").await?;
        namespace.apply(&yaml).await?;
        let pods = namespace.ready_pods("app=web", 2).await?;
        for pod in &pods {
            ensure!(pod.has_sidecar(), "{} has no sidecar: {:?}", pod.name(), pod.object().annotations());
        }
        anyhow::Ok(pods)
    };
    let pods = screen.step("an application that opts in", step).await?;
    screen.yaml(yaml.rsplit("---\n").next().unwrap_or_default());
    screen.command("kubectl get pods", &namespace.kubectl(&["get", "pods", "-l", "app=web"], "").await?);
    Ok((namespace, pods))
}

async fn header(screen: &Screen, namespace: &Namespace, pod: &Pod) -> anyhow::Result<()> {
    let before = pod.get(PORT, "/").await?;
    ensure!(before.status == StatusCode::OK, "the application answers {}", before.status);
    let yaml = HEADER.replace("{value}", "fetchr");
    let took = screen.step("a header set by policy", async |_| header_in_force(namespace, pod, &yaml, "fetchr").await).await?;
    screen.yaml(&yaml);
    let reply = pod.get(PORT, "/").await?;
    screen.command("GET /", &fields(&reply, &["x-served-by", "content-type"]));
    screen.note(&format!("in force {} ms after the API server took it", took.as_millis()));
    Ok(())
}

async fn limit(screen: &Screen, namespace: &Namespace, pod: &Pod) -> anyhow::Result<()> {
    let step = async |_: screen::Say<'_>| {
        apply(namespace, LIMIT).await?;
        eventually("a request too many is refused", IN_FORCE_DEADLINE, async || {
            let reply = pod.get(PORT, "/products/1").await?;
            if reply.status == StatusCode::TOO_MANY_REQUESTS { Ok(reply) } else { bail!("it is answered {}", reply.status) }
        })
        .await
    };
    let refused = screen.step("a limit: 3 requests a minute, the next is refused", step).await?;
    screen.yaml(LIMIT);
    screen.command("GET /products/1", &fields(&refused, &["retry-after", "ratelimit", "ratelimit-policy", "proxy-status"]));
    Ok(())
}

/// Both pods count together, until Redis is gone: then each has its share.
async fn shared_limit(screen: &Screen, namespace: &Namespace, pods: [&Pod; 2]) -> anyhow::Result<()> {
    const ORDERS: &str = "/orders/1";
    let step = async |_: screen::Say<'_>| {
        apply(namespace, SHARED_LIMIT).await?;
        eventually("a limit is used up for both pods", IN_FORCE_DEADLINE, async || {
            let mut passed = 0;
            for round in 0..6 {
                let reply = pods[round % 2].get(PORT, ORDERS).await?;
                ensure!(reply.headers.contains_key("ratelimit"), "the policy is not in force");
                passed += u32::from(reply.status != StatusCode::TOO_MANY_REQUESTS);
            }
            ensure!(passed <= 4, "{passed} of 6 passed");
            let replies = [pods[0].get(PORT, ORDERS).await?, pods[1].get(PORT, ORDERS).await?];
            ensure!(replies.iter().all(|reply| reply.status == StatusCode::TOO_MANY_REQUESTS), "it is not used up");
            Ok(replies)
        })
        .await
    };
    let [refused, _] = screen.step("one limit over two pods: 4 requests an hour, counted in Redis", step).await?;
    screen.yaml(SHARED_LIMIT);
    screen.command("GET /orders/1, of either pod", &fields(&refused, &["retry-after", "ratelimit", "ratelimit-policy"]));
    let step = async |_: screen::Say<'_>| {
        namespace.kubectl(&["delete", "deployment", "redis", "--wait", "--cascade=foreground"], "").await?;
        for pod in pods {
            let reply = pod.get(PORT, ORDERS).await?;
            ensure!(!reply.status.is_server_error(), "{} answers {}", pod.name(), reply.status);
        }
        Ok(())
    };
    screen.step("Redis is gone, and no request fails: each pod holds its share", step).await?;
    Ok(())
}

async fn cache(screen: &Screen, namespace: &Namespace, pods: [&Pod; 2], redis: &str) -> anyhow::Result<()> {
    let step = async |_: screen::Say<'_>| {
        namespace.apply(&REDIS.replace("{image}", redis)).await?;
        namespace.ready_pods("app=redis", 1).await?;
        apply(namespace, CACHE).await?;
        eventually("two pods share a cache", IN_FORCE_DEADLINE, async || {
            for pod in pods {
                let page = pod.get(METRICS_PORT, "/metrics").await?;
                for line in ["fetchr_cache_shared_connected 1", "fetchr_cache_cut_off 0"] {
                    ensure!(page.text().lines().any(|found| found == line), "{} has no {line:?}", pod.name());
                }
                let probe = pod.get(PORT, "/count/probe").await?;
                ensure!(probe.headers.contains_key("cache-status"), "{} caches nothing", pod.name());
            }
            Ok(())
        })
        .await?;
        let missed = pods[0].get(PORT, COUNT).await?;
        let hit = eventually("the other pod has it", IN_FORCE_DEADLINE, async || {
            let reply = pods[1].get(PORT, COUNT).await?;
            ensure!(reply.text() == missed.text(), "it answers {:?}, not {:?}", reply.text(), missed.text());
            Ok(reply)
        })
        .await?;
        anyhow::Ok((missed, hit))
    };
    let (missed, hit) = screen.step("a cache that two pods share through Redis", step).await?;
    screen.yaml(CACHE);
    screen.command(&format!("GET {COUNT}, pod 1: a miss"), &cached(&missed));
    screen.command(&format!("GET {COUNT}, pod 2: a hit"), &cached(&hit));
    Ok(())
}

async fn purge(screen: &Screen, namespace: &Namespace, pods: [&Pod; 2]) -> anyhow::Result<()> {
    let order = async |what: &str| -> anyhow::Result<serde_json::Value> {
        let base = "/apis/api.fetchr.sh/v1alpha1/namespaces";
        let path = format!("{base}/{}/sidecars/{}/purge", namespace.name(), pods[0].name());
        let request = http::Request::post(path).header("content-type", "application/json").body(what.as_bytes().to_vec())?;
        let answer: serde_json::Value = namespace.client().request(request).await?;
        ensure!(answer["complete"] == true, "the purge is not complete: {answer}");
        Ok(answer)
    };
    let step = async |_: screen::Say<'_>| {
        let before = pods[1].get(PORT, COUNT).await?;
        order(r#"{"tag": "news", "soft": true}"#).await?;
        let stale = pods[1].get(PORT, COUNT).await?;
        ensure!(stale.text() == before.text(), "a soft purge takes {:?} away", before.text());
        let answer = order(r#"{"tag": "news"}"#).await?;
        let anew = pods[1].get(PORT, COUNT).await?;
        ensure!(anew.text() != before.text(), "{:?} outlives a purge", before.text());
        anyhow::Ok((stale, answer, anew))
    };
    let (stale, answer, anew) = screen.step("a purge over both pods: first soft, then hard", step).await?;
    screen.command(&format!("GET {COUNT} after a soft purge: stale, while it is fetched anew"), &cached(&stale));
    screen.command("purge of the tag news", &serde_json::to_string_pretty(&answer)?);
    screen.command(&format!("GET {COUNT} after it"), &cached(&anew));
    Ok(())
}

/// What the cache says of an answer, and its body.
fn cached(reply: &Reply) -> String {
    format!("{}{}", fields(reply, &["cache-status", "age"]), reply.text())
}

async fn change(screen: &Screen, namespace: &Namespace, pod: &Pod) -> anyhow::Result<()> {
    let step = async |say: screen::Say<'_>| {
        let mut times = Vec::new();
        for round in 1..=5 {
            let value = format!("fetchr, change {round}");
            let took = header_in_force(namespace, pod, &HEADER.replace("{value}", &value), &value).await?;
            say(&format!("change {round}"));
            times.push(took);
        }
        anyhow::Ok(times)
    };
    let times = screen.step("a policy changed five times, no restart", step).await?;
    let shown: Vec<String> = times.iter().map(|took| format!("{} ms", took.as_millis())).collect();
    screen.note(&format!("from kubectl apply to in force: {}", shown.join(", ")));
    Ok(())
}

async fn metrics(screen: &Screen, pod: &Pod) -> anyhow::Result<()> {
    let page = screen.step("metrics of the sidecar", async |_| pod.get(METRICS_PORT, "/metrics").await).await?;
    let text = page.text();
    let shown = ["http_server_request_duration_seconds_count", "fetchr_ratelimit", "fetchr_build"];
    let lines: Vec<&str> = text.lines().filter(|line| shown.iter().any(|name| line.starts_with(name))).take(8).collect();
    ensure!(!lines.is_empty(), "no figures of requests in the metrics:\n{text}");
    screen.command(&format!("GET :{METRICS_PORT}/metrics"), &lines.join("\n"));
    Ok(())
}

/// Applies a policy that sets the header, and waits until answers have it. The time counts from the API server's answer.
async fn header_in_force(namespace: &Namespace, pod: &Pod, yaml: &str, value: &str) -> anyhow::Result<Duration> {
    apply(namespace, yaml).await?;
    let start = Instant::now();
    eventually("the header is set", IN_FORCE_DEADLINE, async || {
        let reply = pod.get(PORT, "/").await?;
        ensure!(reply.header("x-served-by") == value, "x-served-by is {:?}", reply.header("x-served-by"));
        Ok(start.elapsed())
    })
    .await
}

async fn apply(namespace: &Namespace, yaml: &str) -> anyhow::Result<()> {
    let policy: FetchrPolicy = serde_yaml::from_str(yaml)?;
    let policies = namespace.api::<FetchrPolicy>();
    policies.patch(&policy.name_any(), &PatchParams::apply(MANAGER).force(), &Patch::Apply(&policy)).await?;
    Ok(())
}

fn fields(reply: &Reply, names: &[&str]) -> String {
    let mut text = format!("HTTP/1.1 {}\n", reply.status);
    for name in names.iter().filter(|name| reply.headers.contains_key(**name)) {
        text += &format!("{name}: {}\n", reply.header(name));
    }
    text
}

fn look_around(cluster: &Cluster, pod: &Pod) -> String {
    let kubectl =
        crate::tools::program("kubectl").map(|path| path.display().to_string()).unwrap_or_else(|_| "kubectl".to_owned());
    let shell = match cluster.state() {
        Some(_) => {
            let ip = pod.ip().map(|ip| ip.to_string()).unwrap_or_default();
            format!("make cluster-shell                     # from there: curl -i http://{ip}:{PORT}/products/1\n")
        }
        None => String::new(),
    };
    let down = match cluster.state() {
        Some(_) => "make cluster-down".to_owned(),
        None => format!("helm uninstall {} -n {}; kubectl delete namespace {NAMESPACE}", install::RELEASE, install::NAMESPACE),
    };
    format!(
        "\
Look around:
  export KUBECONFIG={}
  alias kubectl={kubectl}
  kubectl -n {NAMESPACE} get pods,fetchrproxies,fetchrpolicies
  kubectl -n {NAMESPACE} describe fetchrpolicy limit
  kubectl -n {NAMESPACE} edit fetchrpolicy header
  kubectl -n {} logs deployment/{} -f
  {shell}
Take it down:
  {down}",
        cluster.kubeconfig().display(),
        install::NAMESPACE,
        install::OPERATOR,
    )
}
