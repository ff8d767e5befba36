//! An application that is replaced while requests of every kind are under way.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::timeout;

use super::Row;
use crate::namespace::{Namespace, Pod};
use crate::origin::load::Report;
use crate::testbed::application;
use crate::wait::eventually;

/// The pods' grace period has to be longer.
const ROLLED: Duration = Duration::from_secs(180);
/// Of one kind of client.
const RATE: &str = "20";
/// Streams, uploads and tunnels are longer, so fewer.
const LONG_RATE: &str = "2";

/// So many replacements of so many pods, while clients use HTTP/1.1, HTTP/2, streamed answers over HTTP/2, tunnels and uploads,
/// the last three as long as `length`. The namespace has to be on a cluster with fetchr.
///
/// # Errors
/// A step failed, or a request: which one is said.
pub async fn application_rolls(namespace: &Namespace, rolls: u32, pods: u32, length: Duration) -> anyhow::Result<Row> {
    namespace.apply(&application("client", 1, "")).await?;
    namespace.apply(&patient(pods, length)).await?;
    let client = namespace.ready_pods("app=client", 1).await?.remove(0);
    namespace.ready_pods("app=web", pods as usize).await?;
    let rolling = async {
        for _ in 0..rolls {
            roll(namespace).await?;
        }
        anyhow::Ok(())
    };
    let (done, rolled) = tokio::sync::watch::channel(false);
    let work = async {
        let result = rolling.await;
        // Clients look at it after each round.
        let _ = done.send(true);
        result
    };
    let kinds = kinds(length);
    let clients = futures::future::try_join_all(kinds.iter().map(|(kind, flags)| rounds(&client, kind, flags, rolled.clone())));
    let (sent, ()) = tokio::try_join!(clients, work)?;
    let sent: Vec<_> = kinds.iter().zip(sent).map(|((kind, _), count)| format!("{count} {kind}")).collect();
    let extent = format!("{rolls} times {pods} pods, long exchanges of {} s", length.as_secs());
    Ok(Row::new("application rolls (SIGTERM)", extent, format!("0 failed of {}", sent.join(", "))))
}

/// An application and a sidecar that let what is under way take its time: it may begin until `drain.delay` is over.
fn patient(pods: u32, length: Duration) -> String {
    let grace = length.as_secs() + 10;
    let spec = format!("    spec:\n      terminationGracePeriodSeconds: {}\n", grace + 20);
    let environment = format!("env: [{{name: ORIGIN_GRACE, value: '{grace}'}}, ");
    let application = application("web", pods, "fetchr.sh/inject: enabled");
    let application = application.replacen("    spec:\n", &spec, 1).replacen("env: [", &environment, 1);
    format!(
        "{application}---\napiVersion: fetchr.sh/v1alpha1\nkind: FetchrProxy\nmetadata: {{name: web}}\nspec: {{drain: {{timeout: {grace}s}}}}\n"
    )
}

/// What each client is called, and its flags.
fn kinds(length: Duration) -> [(&'static str, Vec<String>); 5] {
    let length_text = length.as_secs_f64().to_string();
    let chunks = length.as_millis() / 100;
    let flags = |all: &[&str]| all.iter().map(|&flag| flag.to_owned()).collect::<Vec<_>>();
    let stream = format!("http://web/stream?ms=100&size=100&chunks={chunks}");
    [
        ("HTTP/1.1", flags(&["--url", "http://web/bytes/100", "--rate", RATE])),
        ("HTTP/2", flags(&["--url", "http://web/bytes/100", "--rate", RATE, "--http2"])),
        ("streams over HTTP/2", flags(&["--url", &stream, "--rate", LONG_RATE, "--http2"])),
        ("tunnels", flags(&["--url", "http://web/ws", "--rate", LONG_RATE, "--tunnel", &length_text])),
        ("uploads", flags(&["--url", "http://web/echo", "--rate", LONG_RATE, "--upload", &length_text])),
    ]
}

/// Sends load in rounds until all is `done`, and once more. Returns how many requests were answered: all.
async fn rounds(client: &Pod, kind: &str, flags: &[String], done: tokio::sync::watch::Receiver<bool>) -> anyhow::Result<u64> {
    let mut command = vec!["fetchr-origin", "load", "--duration", "3", "--deadline", "120"];
    command.extend(flags.iter().map(String::as_str));
    let mut answered = 0;
    loop {
        let last = *done.borrow();
        let report: Report = serde_json::from_str(&client.exec("app", &command).await?)?;
        report.check().with_context(|| kind.to_owned())?;
        answered += report.ok;
        if last {
            return Ok(answered);
        }
    }
}

/// Replaces all pods and waits until the old ones are gone.
async fn roll(namespace: &Namespace) -> anyhow::Result<()> {
    let old = namespace.pods("app=web").await?;
    let replaced = async {
        namespace.kubectl(&["rollout", "restart", "deployment/web"], "").await?;
        eventually("the old pods are gone", ROLLED, async || {
            for pod in &old {
                if pod.refreshed().await.is_ok() {
                    bail!("{} is there", pod.name());
                }
            }
            Ok(())
        })
        .await
    };
    timeout(ROLLED, replaced).await.context("the roll-out took too long")?
}
