//! One stream: what its sidecar is to be told and what it has said.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use crds::plan::{Identity, ObjectRef, PlanKey};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use wire::v1;

use super::{Documents, Features, Sets};
use crate::api::{CommandError, Sidecar};

/// Commands that wait to be sent down one stream.
const COMMANDS: usize = 16;
/// Longest reason of a nack that is kept, in bytes.
const REASON: usize = 512;

/// Who opened a stream, proven by its token.
#[derive(Clone, Debug)]
pub struct Hello {
    /// The pod.
    pub pod: ObjectRef,
    /// Its UID.
    pub uid: String,
    /// Whose plan it wants.
    pub key: PlanKey,
    /// What the sidecar can apply.
    pub features: Features,
    /// Version of the sidecar.
    pub version: String,
    /// Digest of the plan in force; empty if there is none.
    pub digest: String,
    /// Whether it can be told of Services.
    pub takes_services: bool,
}

/// What the sending half of a stream reads from.
#[derive(Debug)]
pub struct Inbox {
    /// The newest plan.
    pub plan: Documents,
    /// The Services that the plan asks for; None until the index knows them. No receiver for a sidecar that can't be told.
    pub services: Option<Sets>,
    /// The pod's place; None until the index knows the pod.
    pub identity: watch::Receiver<Option<Identity>>,
    /// Commands to send.
    pub commands: mpsc::Receiver<v1::Command>,
}

/// One stream.
#[derive(Debug)]
pub struct Session {
    /// The pod.
    pub pod: ObjectRef,
    /// Its UID.
    pub uid: String,
    /// Whose plan it gets.
    pub key: PlanKey,
    /// What its sidecar can apply.
    pub(super) features: Features,
    /// Version of the sidecar.
    pub version: String,
    plan: Documents,
    identity: watch::Sender<Option<Identity>>,
    commands: mpsc::Sender<v1::Command>,
    ended: CancellationToken,
    said: Mutex<Said>,
}

/// What a sidecar has said.
#[derive(Debug, Default)]
struct Said {
    /// Digest of the plan in force.
    digest: String,
    nack: Option<v1::Nack>,
    status: v1::Status,
    next_command: u64,
    waiting: HashMap<String, oneshot::Sender<v1::CommandAnswer>>,
}

/// How a sidecar stands.
#[derive(Clone, Debug)]
pub struct Report {
    /// UID of the pod.
    pub uid: String,
    /// Whether the newest plan is in force.
    pub in_sync: bool,
    /// Why the newest plan was refused.
    pub nack: Option<v1::Nack>,
    /// Policies that its version does not know.
    pub left_out: Arc<[ObjectRef]>,
    /// Where it is.
    pub identity: Option<Identity>,
    /// Whose plan it gets.
    pub key: PlanKey,
    /// Version of the sidecar.
    pub version: String,
    /// Where the plan in force came from: `Stream`, `ConfigMap`, `File`, `None`; empty until the sidecar has said so.
    pub plan_source: String,
}

impl Session {
    pub(super) fn new(hello: Hello, plan: Documents, services: Sets, ended: CancellationToken) -> (Arc<Self>, Inbox) {
        let (commands, to_send) = mpsc::channel(COMMANDS);
        let (identity, place) = watch::channel(None);
        let services = hello.takes_services.then_some(services);
        let inbox = Inbox { plan: plan.clone(), services, identity: place, commands: to_send };
        let said = Mutex::new(Said { digest: hello.digest, ..Said::default() });
        let Hello { pod, uid, key, features, version, .. } = hello;
        (Arc::new(Self { pod, uid, key, features, version, plan, identity, commands, ended, said }), inbox)
    }

    /// Cancelled when the stream is to end.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Whether the sidecar has answered to the plan with this digest, for better or for worse.
    pub fn has_answered(&self, digest: &str) -> bool {
        let said = self.lock();
        said.digest == digest || said.nack.as_ref().is_some_and(|nack| nack.digest == digest)
    }

    pub(super) fn end(&self) {
        self.ended.cancel();
        // Whoever waits for an answer learns at once that there will be none.
        self.lock().waiting.clear();
    }

    pub(super) fn identify(&self, identity: Option<Identity>) {
        // A pod that has just gone keeps its place for the rest of its life.
        if identity.is_some() {
            self.identity.send_if_modified(|current| {
                let changed = *current != identity;
                *current = identity;
                changed
            });
        }
    }

    pub(super) fn acked(&self, digest: String) -> bool {
        let mut said = self.lock();
        said.nack = None;
        let changed = said.digest != digest;
        said.digest = digest;
        changed
    }

    pub(super) fn nacked(&self, mut nack: v1::Nack) -> bool {
        truncate(&mut nack.reason);
        truncate(&mut nack.subject);
        let mut said = self.lock();
        let changed = said.nack.as_ref() != Some(&nack);
        said.nack = Some(nack);
        changed
    }

    pub(super) fn reported(&self, status: v1::Status) -> bool {
        let mut said = self.lock();
        let changed = said.status != status;
        // The plan may have come over another replica's stream.
        if !status.plan_digest.is_empty() {
            said.digest.clone_from(&status.plan_digest);
        }
        said.status = status;
        changed
    }

    pub(super) fn answered(&self, answer: v1::CommandAnswer) {
        if let Some(waiting) = self.lock().waiting.remove(&answer.id) {
            // Whoever asked may have given up.
            let _ = waiting.send(answer);
        }
    }

    pub(super) async fn command(&self, verb: &str, body: Bytes, deadline: Duration) -> Result<Bytes, CommandError> {
        let (id, answer) = self.wait_for_answer();
        let _place = Place { session: self, id: &id };
        let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        let command = v1::Command { id: id.clone(), verb: verb.to_owned(), body, deadline_ms };
        let exchange = async {
            self.commands.send(command).await.map_err(|_| CommandError::NoAnswer)?;
            answer.await.map_err(|_| CommandError::NoAnswer)
        };
        let answer = tokio::time::timeout(deadline, exchange).await;
        match answer {
            Ok(Ok(answer)) if answer.error.is_empty() => Ok(answer.body),
            Ok(Ok(v1::CommandAnswer { error: why, status, .. })) => {
                Err(CommandError::Refused { status: u16::try_from(status).unwrap_or_default(), why })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(CommandError::NoAnswer),
        }
    }

    fn wait_for_answer(&self) -> (String, oneshot::Receiver<v1::CommandAnswer>) {
        let (sender, receiver) = oneshot::channel();
        let mut said = self.lock();
        said.next_command += 1;
        let id = said.next_command.to_string();
        said.waiting.insert(id.clone(), sender);
        (id, receiver)
    }

    pub(super) fn report(&self) -> Report {
        let document = self.plan.borrow().clone();
        let said = self.lock();
        let newest = document.as_ref().map(|document| document.digest.as_str());
        Report {
            uid: self.uid.clone(),
            in_sync: newest == Some(said.digest.as_str()),
            nack: said.nack.clone().filter(|nack| newest == Some(nack.digest.as_str())),
            left_out: document.as_ref().map(|document| document.left_out.clone()).unwrap_or_default(),
            identity: self.identity.borrow().clone(),
            key: self.key.clone(),
            version: self.version.clone(),
            plan_source: said.status.plan_source.clone(),
        }
    }

    pub(super) fn describe(&self) -> Sidecar {
        let report = self.report();
        let workload = report.identity.map(|place| format!("{}/{}", place.workload_kind, place.workload_name));
        let said = self.lock();
        Sidecar {
            namespace: self.pod.namespace.clone(),
            pod: self.pod.name.clone(),
            pod_uid: self.uid.clone(),
            proxy: self.key.proxy.to_string(),
            workload: workload.unwrap_or_default(),
            version: self.version.clone(),
            plan_digest: said.digest.clone(),
            in_sync: report.in_sync,
            ready: said.status.ready,
            nack: report.nack.map(|nack| told(&nack)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those who wait for an answer; given up also by who stops asking halfway.
struct Place<'a> {
    session: &'a Session,
    id: &'a str,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.session.lock().waiting.remove(self.id);
    }
}

/// A nack in words.
pub fn told(nack: &v1::Nack) -> String {
    if nack.subject.is_empty() { nack.reason.clone() } else { format!("{}: {}", nack.subject, nack.reason) }
}

fn truncate(text: &mut String) {
    if text.len() > REASON {
        text.truncate(text.floor_char_boundary(REASON));
        text.push('…');
    }
}
