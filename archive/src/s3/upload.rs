//! How an object gets into a bucket.

use std::time::Duration;

use aws_sdk_s3::{
    Client,
    primitives::ByteStream,
    types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart},
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use tokio::{runtime::Handle, time::timeout};

use super::{PART, failed::Doing};
use crate::{Body, Condition, Error, Key, Kind};

/// Parts of an object, at most.
const PARTS: i32 = 10_000;
/// So many parts have one size; the next ones are twice as long. So ten thousand are more than what any object may have.
const SAME: i32 = 1000;
/// How long it may take to give up what was begun.
const GIVING_UP: Duration = Duration::from_secs(10);

/// An object that is to be put.
pub(super) struct Upload<'a> {
    pub(super) client: &'a Client,
    pub(super) bucket: &'a str,
    pub(super) key: &'a Key,
    pub(super) condition: Condition,
    pub(super) place: String,
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
        let begin = self.client.create_multipart_upload().bucket(self.bucket).key(self.key.as_str());
        let begun =
            begin.checksum_algorithm(ChecksumAlgorithm::Crc32).send().await.map_err(|error| self.doing().failed(error))?;
        let id = begun.upload_id.ok_or_else(|| Error::new(Kind::Unavailable, &self.place, "the bucket began no upload"))?;
        // Also if this is dropped half way: parts would be paid for for ever.
        let guard = GivenUp::new(self, &id);
        let length = self.send(&id, first, parts).await;
        match length {
            Ok(_) => guard.done(),
            Err(_) => guard.now().await,
        }
        length
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

/// Gives an upload up when it is dropped, unless it is done.
struct GivenUp(Option<(Client, String, String, String)>);

impl GivenUp {
    fn new(upload: &Upload<'_>, id: &str) -> Self {
        Self(Some((upload.client.clone(), upload.bucket.to_owned(), upload.key.as_str().to_owned(), id.to_owned())))
    }

    fn done(mut self) {
        self.0 = None;
    }

    async fn now(mut self) {
        if let Some(of) = self.0.take() {
            give_up(of).await;
        }
    }
}

async fn give_up((client, bucket, key, id): (Client, String, String, String)) {
    // If this fails, too, the bucket's own rules have to clean up.
    let _ = timeout(GIVING_UP, client.abort_multipart_upload().bucket(bucket).key(key).upload_id(id).send()).await;
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        if let (Some(of), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(give_up(of));
        }
    }
}
