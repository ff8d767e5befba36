//! How an object gets into a bucket.

use std::time::Duration;

use aws_sdk_s3::{
    Client,
    config::http::HttpResponse,
    error::SdkError,
    operation::create_multipart_upload::CreateMultipartUploadError,
    primitives::ByteStream,
    types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart},
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use tokio::{
    runtime::Handle,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use super::{PART, failed::Doing};
use crate::{Body, Condition, Error, Key, Kind};

/// Parts of an object, at most.
const PARTS: i32 = 10_000;
/// So many parts have one size; the next ones are twice as long. So ten thousand are more than what any object may have.
const SAME: i32 = 1000;
/// How long it may take to give up what was begun.
const GIVING_UP: Duration = Duration::from_secs(10);
/// How much later a part may be stored than its request is dropped.
const LATE_PART: Duration = Duration::from_secs(1);

/// An object that is to be put.
pub(super) struct Upload<'a> {
    pub(super) client: &'a Client,
    pub(super) bucket: &'a str,
    pub(super) key: &'a Key,
    pub(super) condition: Condition,
    pub(super) place: String,
    /// All of the bucket that are open.
    pub(super) open: &'a TaskTracker,
}

impl Upload<'_> {
    /// Puts it: at once if it is short.
    pub(super) async fn put(&self, body: Body) -> Result<u64, Error> {
        let mut parts = Parts { body, held: BytesMut::new(), ended: false };
        let first = self.next(&mut parts, PART).await?;
        if parts.ended && parts.held.is_empty() {
            return self.at_once(first).await;
        }
        self.in_parts(first, parts).await
    }

    async fn at_once(&self, body: Bytes) -> Result<u64, Error> {
        let length = body.len() as u64;
        let put = self.client.put_object().bucket(self.bucket).key(self.key.as_str()).body(ByteStream::from(body));
        let sent = put.set_if_none_match(self.if_none()).send().await;
        sent.map(|_| length).map_err(|error| self.doing().failed(error))
    }

    async fn in_parts(&self, first: Bytes, parts: Parts) -> Result<u64, Error> {
        let begun = self.begin().await?;
        let length = self.send(&begun.id, first, parts).await;
        match length {
            Ok(_) => begun.done(),
            Err(_) => begun.give_up().await,
        }
        length
    }

    /// Begins it, in a task of its own: who is dropped before the bucket has told its id could not give it up.
    async fn begin(&self) -> Result<Begun, Error> {
        let begin = self.client.create_multipart_upload().bucket(self.bucket).key(self.key.as_str());
        let begin = begin.checksum_algorithm(ChecksumAlgorithm::Crc32);
        let (client, bucket, key) = (self.client.clone(), self.bucket.to_owned(), self.key.clone());
        let (runtime, open) = (Handle::current(), self.open.clone());
        let token = open.token();
        let task = runtime.clone().spawn(async move {
            let id = begin.send().await?.upload_id;
            let begun = |id| Begun { client, bucket, key, id, is_open: true, runtime, open, _token: token };
            Ok::<_, SdkError<CreateMultipartUploadError, HttpResponse>>(id.map(begun))
        });
        match task.await {
            Ok(Ok(Some(begun))) => Ok(begun),
            Ok(Ok(None)) => Err(Error::new(Kind::Unavailable, &self.place, "the bucket began no upload")),
            Ok(Err(error)) => Err(self.doing().failed(error)),
            Err(ended) => Err(Error::new(Kind::Unavailable, &self.place, "it can't be put").because(ended)),
        }
    }

    async fn send(&self, id: &str, first: Bytes, mut parts: Parts) -> Result<u64, Error> {
        let (mut sent, mut length, mut part) = (Vec::new(), 0, first);
        for number in 1..=PARTS {
            length += part.len() as u64;
            sent.push(self.part(id, number, part).await?);
            part = self.next(&mut parts, PART << (number / SAME)).await?;
            if part.is_empty() {
                self.complete(id, sent).await?;
                return Ok(length);
            }
        }
        Err(Error::new(Kind::Wrong, &self.place, "it is too long for an object"))
    }

    async fn part(&self, id: &str, number: i32, body: Bytes) -> Result<CompletedPart, Error> {
        let part = self.client.upload_part().bucket(self.bucket).key(self.key.as_str()).upload_id(id).part_number(number);
        let sent = part.checksum_algorithm(ChecksumAlgorithm::Crc32).body(ByteStream::from(body)).send().await;
        let sent = sent.map_err(|error| self.doing().failed(error))?;
        let (tag, sum) = (sent.e_tag, sent.checksum_crc32);
        Ok(CompletedPart::builder().part_number(number).set_e_tag(tag).set_checksum_crc32(sum).build())
    }

    async fn complete(&self, id: &str, parts: Vec<CompletedPart>) -> Result<(), Error> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let complete = self.client.complete_multipart_upload().bucket(self.bucket).key(self.key.as_str()).upload_id(id);
        let sent = complete.multipart_upload(parts).set_if_none_match(self.if_none()).send().await;
        sent.map(drop).map_err(|error| self.doing().failed(error))
    }

    /// The next bytes of what is put, of some length unless they are the last.
    async fn next(&self, parts: &mut Parts, length: usize) -> Result<Bytes, Error> {
        while parts.held.len() < length && !parts.ended {
            match parts.body.next().await {
                None => parts.ended = true,
                Some(Ok(piece)) => parts.held.extend_from_slice(&piece),
                Some(Err(error)) => {
                    let what = "nothing was put: what was to be put broke off";
                    return Err(Error::new(Kind::Source, &self.place, what).because(error));
                }
            }
        }
        let length = length.min(parts.held.len());
        Ok(parts.held.split_to(length).freeze())
    }

    fn if_none(&self) -> Option<String> {
        (self.condition == Condition::IfAbsent).then(|| "*".to_owned())
    }

    fn doing(&self) -> Doing {
        Doing { place: self.place.clone(), what: "it can't be put" }
    }
}

/// What has come of a body and was not sent.
struct Parts {
    body: Body,
    held: BytesMut,
    ended: bool,
}

/// An upload that was begun. It is given up when this is dropped, unless it is done: parts would be paid for for ever.
struct Begun {
    client: Client,
    bucket: String,
    key: Key,
    id: String,
    is_open: bool,
    /// Where it is given up, whoever drops this.
    runtime: Handle,
    open: TaskTracker,
    /// Until it is done, or somebody gives it up, it is one of those that are open.
    _token: TaskTrackerToken,
}

impl Begun {
    fn done(mut self) {
        self.is_open = false;
    }

    /// Goes on also if nobody waits for it any more.
    async fn give_up(mut self) {
        let _ = self.begin_to_give_up().await;
    }

    fn begin_to_give_up(&mut self) -> JoinHandle<()> {
        self.is_open = false;
        let abort = self.client.abort_multipart_upload().bucket(&self.bucket).key(self.key.as_str()).upload_id(&self.id);
        let given_up = async move {
            // If this fails, too, the bucket's own rules have to clean up.
            let _ = timeout(GIVING_UP, abort.clone().send()).await;
            // A part that the bucket had when its request was dropped may come later than that, and would stay.
            sleep(LATE_PART).await;
            let _ = timeout(GIVING_UP, abort.send()).await;
        };
        self.open.spawn_on(given_up, &self.runtime)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.is_open {
            drop(self.begin_to_give_up());
        }
    }
}
