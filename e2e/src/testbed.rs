//! The cluster that all tests share, with fetchr installed.

use std::fs::File;
use std::panic::AssertUnwindSafe;

use anyhow::ensure;
use futures::FutureExt;
use tokio::sync::OnceCell;

use crate::cluster::{Cluster, Lifetime, State};
use crate::images;
use crate::install;
use crate::namespace::{Namespace, Pod};
use crate::origin::load::Report;

/// Keeps the cluster up until this program ends.
static IN_USE: OnceCell<File> = OnceCell::const_new();
static BUILD: OnceCell<String> = OnceCell::const_new();

/// The cluster on this machine, started where it is not up, with the images of this build. It ends some minutes after the last
/// program that used it, unless somebody started it by hand.
///
/// # Errors
/// The cluster can't be started, `KUBECONFIG` names another one, or a program was not built.
pub async fn cluster() -> anyhow::Result<Cluster> {
    let _in_use = IN_USE.get_or_try_init(async || State::of_this_machine()?.use_lock()).await?;
    let cluster = Cluster::up(Lifetime::WhileUsed, &|step| eprintln!("cluster: {step}")).await?;
    ensure!(cluster.state().is_some(), "tests need the cluster on this machine, for its images: unset KUBECONFIG");
    build(&cluster).await?;
    Ok(cluster)
}

/// [`cluster`] with fetchr installed as this build has it.
///
/// # Errors
/// As [`cluster`], or the chart can't be installed.
pub async fn fetchr() -> anyhow::Result<Cluster> {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    let cluster = cluster().await?;
    let install = async || {
        let state = State::of_this_machine()?;
        // Programs of tests may run side by side, and a test of uninstalling may have left nothing.
        let _lock = tokio::task::spawn_blocking(move || state.install_lock()).await??;
        install::chart(&cluster, build(&cluster).await?, &[]).await
    };
    INSTALLED.get_or_try_init(install).await?;
    Ok(cluster)
}

/// What tells this build from others, for [`install::chart`].
///
/// # Errors
/// A program was not built, or the node refused an image.
pub async fn build(cluster: &Cluster) -> anyhow::Result<&'static str> {
    Ok(BUILD.get_or_try_init(async || install::load_images(cluster).await).await?)
}

/// Runs a test in a namespace of its own on a cluster with fetchr, and removes the namespace however the test ends. When it
/// fails, pods, events and logs of the namespace are printed.
pub async fn with_namespace(test: impl AsyncFnOnce(Namespace)) {
    with_labelled_namespace(&[], test).await;
}

/// [`with_namespace`] with labels on the namespace.
pub async fn with_labelled_namespace(labels: &[(&str, &str)], test: impl AsyncFnOnce(Namespace)) {
    let cluster = fetchr().await.unwrap_or_else(|error| fail(&error));
    let namespace = Namespace::create(&cluster, "test", labels).await.unwrap_or_else(|error| fail(&error));
    let result = AssertUnwindSafe(test(namespace.clone())).catch_unwind().await;
    if result.is_err() {
        eprintln!("{}", install::describe(&cluster, namespace.name()));
    }
    let deleted = namespace.delete().await;
    match result {
        Err(panic) => std::panic::resume_unwind(panic),
        Ok(()) => deleted.unwrap_or_else(|error| fail(&error)),
    }
}

#[allow(clippy::panic, reason = "this is how a test fails")]
fn fail(error: &anyhow::Error) -> ! {
    panic!("{error:#}")
}

/// Sends load from a pod of the test application to the Service `web` in rounds until `change` is done, and one more. Returns how many
/// requests were sent, and what the change returned.
///
/// # Errors
/// A request failed.
pub async fn answered_during<T>(client: &Pod, change: impl Future<Output = T>) -> anyhow::Result<(u64, T)> {
    let load = ["fetchr-origin", "load", "--url", "http://web/bytes/100", "--rate", "50", "--duration", "2"];
    let round = async || {
        let report: Report = serde_json::from_str(&client.exec("app", &load).await?)?;
        report.check()?;
        anyhow::Ok(report.ok)
    };
    tokio::pin!(change);
    let mut answered = 0;
    loop {
        let rounds = round();
        tokio::pin!(rounds);
        tokio::select! {
            result = &mut change => return Ok((answered + rounds.await? + round().await?, result)),
            ok = &mut rounds => answered += ok?,
        }
    }
}

/// A Deployment `name` of the test application with the label `app: NAME`, listening on 8080, as YAML. `annotations` are those of
/// its pods, as in `fetchr.sh/inject: enabled`.
pub fn application(name: &str, replicas: u32, annotations: &str) -> String {
    format!(
        "\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata:
      labels: {{app: {name}}}
      annotations: {{{annotations}}}
    spec:
      containers:
      - name: app
        image: {}
        imagePullPolicy: IfNotPresent
        env: [{{name: ORIGIN_NAME, value: {name}}}]
        ports: [{{containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
",
        images::ORIGIN
    )
}
