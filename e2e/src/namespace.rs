//! A namespace of a test's own, and its pods as the test sees them.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1 as core;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::cluster::Cluster;
use crate::wait::eventually;

/// How long pods may take to become ready.
pub const PODS_DEADLINE: Duration = Duration::from_secs(90);
/// The sidecar's container.
pub const SIDECAR: &str = "fetchr-proxy";

const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// A namespace.
#[derive(Clone)]
pub struct Namespace {
    cluster: Cluster,
    client: Client,
    name: String,
}

/// A pod as it was when it was read.
#[derive(Clone)]
pub struct Pod {
    namespace: Namespace,
    object: core::Pod,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Whether a pod has the condition `Ready`.
pub(crate) fn is_ready(pod: &core::Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"))
}

impl Namespace {
    /// Makes a namespace whose name starts with `prefix`, with labels given as `name=value`.
    ///
    /// # Errors
    /// The API server refused it.
    pub async fn create(cluster: &Cluster, prefix: &str, labels: &[(&str, &str)]) -> anyhow::Result<Self> {
        let client = cluster.client().await?;
        let labels: std::collections::BTreeMap<_, _> = labels.iter().copied().collect();
        let namespace = serde_json::from_value(json!({"metadata": {"generateName": format!("{prefix}-"), "labels": labels}}))?;
        let made = Api::<core::Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await?;
        let namespace = Self { cluster: cluster.clone(), client, name: made.name_any() };
        namespace.account().await?;
        Ok(namespace)
    }

    /// The namespace of this name, made where it is missing.
    ///
    /// # Errors
    /// The API server refused it.
    pub async fn named(cluster: &Cluster, name: &str) -> anyhow::Result<Self> {
        let client = cluster.client().await?;
        let namespaces = Api::<core::Namespace>::all(client.clone());
        if namespaces.get_opt(name).await?.is_none() {
            let namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
            namespaces.create(&PostParams::default(), &namespace).await?;
        }
        let namespace = Self { cluster: cluster.clone(), client, name: name.to_owned() };
        namespace.account().await?;
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A client with all rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Objects of a kind in this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Applies YAML documents, by `kubectl apply --server-side`.
    ///
    /// # Errors
    /// The API server refused one; the message is kubectl's.
    pub async fn apply(&self, yaml: &str) -> anyhow::Result<()> {
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "-"], yaml).await.map(drop)
    }

    /// Runs kubectl in this namespace with `input` on its stdin, and returns what it printed on stdout.
    ///
    /// # Errors
    /// kubectl failed; the message is what it printed on stderr.
    pub async fn kubectl(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let mut kubectl = self.cluster.kubectl()?;
        kubectl.args(["--namespace", &self.name]).args(arguments);
        kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (spelled, input) = (arguments.join(" "), input.to_owned());
        let run = move || {
            let mut child = kubectl.spawn().context("could not run kubectl")?;
            child.stdin.take().context("stdin was asked for")?.write_all(input.as_bytes())?;
            anyhow::Ok(child.wait_with_output()?)
        };
        let output = tokio::task::spawn_blocking(run).await??;
        if !output.status.success() {
            bail!("kubectl {spelled}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The pods with these labels, `app=web`, that are not about to end.
    ///
    /// # Errors
    /// The API server can't be reached.
    pub async fn pods(&self, labels: &str) -> anyhow::Result<Vec<Pod>> {
        let list = self.api::<core::Pod>().list(&ListParams::default().labels(labels)).await?;
        let live = list.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(live.map(|object| Pod { namespace: self.clone(), object }).collect())
    }

    /// Waits until exactly `count` pods have these labels and all are ready.
    ///
    /// # Errors
    /// They were not in time; the message holds pods, events and logs of the namespace.
    pub async fn ready_pods(&self, labels: &str, count: usize) -> anyhow::Result<Vec<Pod>> {
        let probe = async || {
            let pods = self.pods(labels).await?;
            match pods.iter().find(|pod| !pod.is_ready()) {
                Some(pod) => bail!("{} is not ready", pod.name()),
                None if pods.len() != count => bail!("{} pods", pods.len()),
                None => Ok(pods),
            }
        };
        let ready = eventually(&format!("{count} pods with {labels} are ready"), PODS_DEADLINE, probe).await;
        ready.with_context(|| crate::install::describe(&self.cluster, &self.name))
    }

    /// Deletes the namespace and all that is in it, without waiting for the end.
    ///
    /// # Errors
    /// The API server refused it.
    pub async fn delete(&self) -> anyhow::Result<()> {
        Api::<core::Namespace>::all(self.client.clone()).delete(&self.name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Deletes the namespace and waits until nothing of it is left.
    ///
    /// # Errors
    /// The API server refused it, or something in it did not end in time.
    pub async fn remove(&self) -> anyhow::Result<()> {
        self.delete().await?;
        let namespaces = Api::<core::Namespace>::all(self.client.clone());
        let gone = async || match namespaces.get_opt(&self.name).await? {
            None => Ok(()),
            Some(_) => bail!("it is there"),
        };
        eventually(&format!("the namespace {} ends", self.name), PODS_DEADLINE, gone).await
    }

    /// Pods are refused until the namespace has its service account.
    async fn account(&self) -> anyhow::Result<()> {
        let accounts = self.api::<core::ServiceAccount>();
        let probe = async || Ok(accounts.get("default").await.map(drop)?);
        eventually("the namespace has its service account", ANSWER_DEADLINE, probe).await
    }
}

impl Pod {
    /// Its name.
    pub fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    /// The whole object.
    pub fn object(&self) -> &core::Pod {
        &self.object
    }

    /// Whether it has a fetchr sidecar.
    pub fn has_sidecar(&self) -> bool {
        let containers = self.object.spec.as_ref().and_then(|spec| spec.init_containers.as_ref());
        containers.is_some_and(|all| all.iter().any(|container| container.name == SIDECAR))
    }

    /// Whether it is ready.
    pub fn is_ready(&self) -> bool {
        is_ready(&self.object)
    }

    /// Its first address.
    ///
    /// # Errors
    /// It has none yet.
    pub fn ip(&self) -> anyhow::Result<IpAddr> {
        let ip = self.object.status.as_ref().and_then(|status| status.pod_ip.as_ref());
        ip.with_context(|| format!("{} has no address yet", self.name()))?.parse().context("the pod's address")
    }

    /// Reads the pod again.
    ///
    /// # Errors
    /// It is gone.
    pub async fn refreshed(&self) -> anyhow::Result<Self> {
        let object = self.namespace.api::<core::Pod>().get(self.name()).await?;
        Ok(Self { namespace: self.namespace.clone(), object })
    }

    /// Asks for a path on a port of the pod, from outside of it.
    ///
    /// # Errors
    /// There was no whole answer.
    pub async fn get(&self, port: u16, path: &str) -> anyhow::Result<Reply> {
        self.send(port, Request::get(path).body(Bytes::new())?).await
    }

    /// Sends a request, whose URI is a path, to a port of the pod, from outside of it. In the cluster on this machine it comes
    /// from the node; elsewhere through the API server, which adds fields of its own.
    ///
    /// # Errors
    /// There was no whole answer.
    pub async fn send(&self, port: u16, request: Request<Bytes>) -> anyhow::Result<Reply> {
        let exchange = async {
            match self.namespace.cluster.state() {
                Some(_) => self.send_directly(port, request).await,
                None => self.send_through_api(port, request).await,
            }
        };
        let what = || format!("{}:{port} gave no answer", self.name());
        tokio::time::timeout(ANSWER_DEADLINE, exchange).await.with_context(what)?.with_context(what)
    }

    /// The log of a container so far.
    ///
    /// # Errors
    /// The container has not started.
    pub async fn log(&self, container: &str) -> anyhow::Result<String> {
        let parameters = kube::api::LogParams { container: Some(container.to_owned()), ..Default::default() };
        Ok(self.namespace.api::<core::Pod>().logs(self.name(), &parameters).await?)
    }

    /// Runs a command in a container and returns what it printed on stdout.
    ///
    /// # Errors
    /// It can't be run, or it failed: the message is what it printed on stderr.
    pub async fn exec(&self, container: &str, command: &[&str]) -> anyhow::Result<String> {
        let parameters = kube::api::AttachParams::default().container(container);
        let mut process = self.namespace.api::<core::Pod>().exec(self.name(), command.iter().copied(), &parameters).await?;
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let (mut out, mut err) = (process.stdout().context("stdout")?, process.stderr().context("stderr")?);
        let status = process.take_status().context("status")?;
        tokio::try_join!(out.read_to_string(&mut stdout), err.read_to_string(&mut stderr))?;
        match status.await.and_then(|status| status.status).as_deref() {
            Some("Success") => Ok(stdout),
            _ => bail!("{} in {}: {}{}", command.join(" "), self.name(), stdout, stderr),
        }
    }

    /// Kills a container's first process by SIGKILL, as the kernel does when memory is short. Only in the cluster on this machine.
    ///
    /// # Errors
    /// The container does not run.
    pub async fn kill(&self, container: &str) -> anyhow::Result<()> {
        let (cluster, id) = (self.namespace.cluster.clone(), self.container_id(container).await?);
        tokio::task::spawn_blocking(move || cluster.kill_container(&id)).await?
    }

    /// Kills the worker of a container whose first process is a supervisor. Only in the cluster on this machine.
    ///
    /// # Errors
    /// The container has no worker.
    pub async fn kill_worker(&self, container: &str) -> anyhow::Result<()> {
        let id = self.container_id(container).await?;
        let kill = move || {
            let processes = crate::process::of_container(&id)?;
            let has_parent = |id: &&u32| {
                let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
                let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
                parent.is_some_and(|parent: u32| processes.contains(&parent))
            };
            let worker = processes.iter().find(has_parent).context("it has no worker")?;
            // SAFETY: kill(2) takes no pointers; the process was just seen in the container, whose supervisor alone reaps it.
            let killed = unsafe { libc::kill(i32::try_from(*worker)?, libc::SIGKILL) };
            ensure!(killed == 0, "process {worker} could not be killed");
            Ok(())
        };
        tokio::task::spawn_blocking(kill).await?
    }

    /// How often a container was started again.
    ///
    /// # Errors
    /// The pod is gone.
    pub async fn restarts(&self, container: &str) -> anyhow::Result<i32> {
        let status = self.refreshed().await?.object.status.unwrap_or_default();
        let mut all = status.init_container_statuses.into_iter().chain(status.container_statuses).flatten();
        Ok(all.find(|status| status.name == container).context("it is not there")?.restart_count)
    }

    /// What the container runtime calls a container of this pod.
    ///
    /// # Errors
    /// The container does not run, or the pod is gone.
    pub(crate) async fn container_id(&self, container: &str) -> anyhow::Result<String> {
        let status = self.refreshed().await?.object.status.unwrap_or_default();
        let mut all = status.init_container_statuses.into_iter().chain(status.container_statuses).flatten();
        let found = all.find(|status| status.name == container).and_then(|status| status.container_id);
        let id = found.with_context(|| format!("{container} does not run in {}", self.name()))?;
        Ok(id.rsplit('/').next().unwrap_or_default().to_owned())
    }

    async fn send_directly(&self, port: u16, mut request: Request<Bytes>) -> anyhow::Result<Reply> {
        let address = SocketAddr::new(self.ip()?, port);
        let stream = self.namespace.cluster.connect(address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
        if !request.headers().contains_key(http::header::HOST) {
            request.headers_mut().insert(http::header::HOST, address.to_string().parse()?);
        }
        let reply = Reply::read(sender.send_request(request.map(Full::new)).await?).await;
        drop(connection);
        reply
    }

    async fn send_through_api(&self, port: u16, mut request: Request<Bytes>) -> anyhow::Result<Reply> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let (namespace, name) = (self.namespace.name(), self.name());
        *request.uri_mut() = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy{path}").parse()?;
        let request = request.map(|body| kube::client::Body::from(body.to_vec()));
        Reply::read(self.namespace.client.send(request).await?).await
    }
}

impl Reply {
    /// A field's value; empty where it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("no JSON: {}", self.text()))
    }

    async fn read<B>(response: http::Response<B>) -> anyhow::Result<Self>
    where
        B: hyper::body::Body,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let (head, body) = response.into_parts();
        Ok(Self { status: head.status, headers: head.headers, body: body.collect().await?.to_bytes() })
    }
}
