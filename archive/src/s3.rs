//! Buckets of S3, and of what speaks like it.
//!
//! What is longer than a [part](PART) goes up in parts, one after the other, and is there when all are. Every request has a time limit and
//! is tried again a few times, later each time and not at the same moment as others; bodies have checksums (CRC32) both ways.

mod credentials;
mod failed;
mod upload;

use std::{
    ops::Range,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_s3::{
    Client,
    config::{Builder, StalledStreamProtectionConfig},
    primitives::{ByteStream, DateTime},
};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use self::{failed::Doing, upload::Upload};
use crate::{Body, Condition, Content, Entry, Error, Got, Key, Kind, Store};

/// Bytes of a part: what is held of an object that is being put.
pub const PART: usize = 8 << 20;
/// How long a connection may take, an answer, a try, and all tries of one request together.
const CONNECTING: Duration = Duration::from_secs(3);
const READING: Duration = Duration::from_secs(20);
const TRY: Duration = Duration::from_secs(60);
const TRIES: Duration = Duration::from_secs(150);
/// Tries of one request, and how long after the first the second comes, and each of the others at most.
const MOST_TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long the next bytes of an object may take.
const PIECE: Duration = Duration::from_secs(30);
/// Objects of a page of a listing.
const PAGE: i32 = 1000;

/// Which bucket, where, and as whom.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Settings {
    /// Its name.
    pub bucket: String,
    /// None: that of the environment, or us-east-1 with an endpoint.
    pub region: Option<String>,
    /// Where it is, such as `http://minio:9000`. None: at AWS.
    pub endpoint: Option<String>,
    /// Whether its name stands in the path. None: if there is an endpoint.
    pub path_style: Option<bool>,
    /// Who asks.
    pub credentials: Credentials,
}

/// Who asks.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Credentials {
    /// Whoever the SDK finds: environment, profile, web identity (IRSA), container, machine.
    #[default]
    Chain,
    /// What stands in files, which are read again now and then: Secrets are renewed.
    Files {
        /// The access key's id.
        access_key_id: PathBuf,
        /// The access key.
        secret_access_key: PathBuf,
    },
}

/// A bucket.
#[derive(Clone, Debug)]
pub struct Bucket {
    client: Client,
    name: String,
    /// Uploads that are open, and what gives them up.
    uploads: TaskTracker,
}

impl Bucket {
    /// Prepares to ask a bucket; nothing is asked yet, but with [`Credentials::Chain`] maybe for the region.
    pub async fn open(settings: &Settings) -> Self {
        let Settings { bucket, region, endpoint, path_style, credentials } = settings;
        let region = region.clone().or_else(|| endpoint.is_some().then(|| "us-east-1".to_owned())).map(Region::new);
        let builder = match credentials {
            Credentials::Chain => {
                let mut loader = aws_config::defaults(BehaviorVersion::latest());
                if let Some(region) = region {
                    loader = loader.region(region);
                }
                Builder::from(&loader.load().boxed().await)
            }
            Credentials::Files { access_key_id, secret_access_key } => {
                let files = credentials::Files::new(access_key_id, secret_access_key);
                Builder::new().behavior_version(BehaviorVersion::latest()).credentials_provider(files).region(region)
            }
        };
        let mut builder = builder.force_path_style(path_style.unwrap_or(endpoint.is_some()));
        if let Some(endpoint) = endpoint {
            builder = builder.endpoint_url(endpoint);
        }
        let uploads = TaskTracker::new();
        uploads.close(); // so that they can be waited for
        Self { client: Client::from_conf(bounded(builder).build()), name: bucket.clone(), uploads }
    }

    /// Makes the bucket.
    ///
    /// # Errors
    /// Why it can't be made.
    pub async fn create(&self) -> Result<(), Error> {
        let sent = self.client.create_bucket().bucket(&self.name).send().await;
        sent.map(drop).map_err(|error| self.doing("", "it can't be made").failed(error))
    }

    /// How many objects are on their way in parts, 1000 at most.
    ///
    /// # Errors
    /// Why that can't be known.
    pub async fn open_uploads(&self) -> Result<usize, Error> {
        let sent = self.client.list_multipart_uploads().bucket(&self.name).send().await;
        sent.map(|open| open.uploads().len()).map_err(|error| self.doing("", "its uploads can't be listed").failed(error))
    }

    fn upload<'a>(&'a self, key: &'a Key, condition: Condition) -> Upload<'a> {
        let place = self.place(key.as_str());
        Upload { client: &self.client, bucket: &self.name, key, condition, place, open: &self.uploads }
    }

    fn doing(&self, key: &str, what: &'static str) -> Doing {
        Doing { place: self.place(key), what }
    }
}

/// With limits on time and tries.
fn bounded(builder: Builder) -> Builder {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECTING)
        .read_timeout(READING)
        .operation_attempt_timeout(TRY)
        .operation_timeout(TRIES)
        .build();
    let retries =
        RetryConfig::standard().with_max_attempts(MOST_TRIES).with_initial_backoff(FIRST_PAUSE).with_max_backoff(LONGEST_PAUSE);
    let stalls = StalledStreamProtectionConfig::enabled().grace_period(READING).build();
    builder.timeout_config(timeouts).retry_config(retries).stalled_stream_protection(stalls)
}

#[async_trait]
impl Store for Bucket {
    async fn put(&self, key: &Key, body: Body, condition: Condition) -> Result<u64, Error> {
        self.upload(key, condition).put(body).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Got, Error> {
        let doing = self.doing(key.as_str(), "it can't be read");
        let Some(asked) = asked(range.as_ref()) else {
            let none = || Error::new(Kind::NotFound, self.place(key.as_str()), "there is no such object");
            return Ok(Got { entry: self.head(key).await?.ok_or_else(none)?, content: stream::empty().boxed() });
        };
        let sent = self.client.get_object().bucket(&self.name).key(key.as_str()).set_range(asked).send().await;
        let got = match sent {
            Ok(got) => got,
            // It has none of these bytes.
            Err(error) if failed::status(&error) == Some(416) => return self.get(key, Some(0..0)).await,
            Err(error) => return Err(doing.failed(error)),
        };
        let whole = got.content_range().and_then(|range| range.rsplit_once('/')?.1.parse().ok());
        let bytes = whole.unwrap_or_else(|| length(got.content_length()));
        let entry = Entry { key: key.as_str().to_owned(), bytes, modified: modified(got.last_modified()) };
        Ok(Got { entry, content: content(doing, got.body) })
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>, Error> {
        let sent = self.client.head_object().bucket(&self.name).key(key.as_str()).send().await;
        match sent {
            Ok(known) => {
                let (bytes, modified) = (length(known.content_length()), modified(known.last_modified()));
                Ok(Some(Entry { key: key.as_str().to_owned(), bytes, modified }))
            }
            Err(error) if failed::status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.doing(key.as_str(), "it can't be looked at").failed(error)),
        }
    }

    fn list(&self, prefix: &str) -> BoxStream<'static, Result<Entry, Error>> {
        let doing = self.doing(prefix, "it can't be listed");
        let pages = self.client.list_objects_v2().bucket(&self.name).prefix(prefix).into_paginator().page_size(PAGE).send();
        stream::unfold((pages, doing), |(mut pages, doing)| async {
            let page = match pages.next().await? {
                Ok(page) => page.contents.unwrap_or_default().into_iter().filter_map(entry).map(Ok).collect(),
                Err(error) => vec![Err(doing.failed(error))],
            };
            Some((page, (pages, doing)))
        })
        .map(stream::iter)
        .flatten()
        .boxed()
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        let sent = self.client.delete_object().bucket(&self.name).key(key.as_str()).send().await;
        match sent {
            Ok(_) => Ok(()),
            Err(error) if failed::status(&error) == Some(404) => Ok(()),
            Err(error) => Err(self.doing(key.as_str(), "it can't be deleted").failed(error)),
        }
    }

    async fn settled(&self) {
        self.uploads.wait().await;
    }

    fn place(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.name)
    }
}

/// The field `Range`, if there is one. None if no bytes are asked for.
fn asked(range: Option<&Range<u64>>) -> Option<Option<String>> {
    match range {
        None => Some(None),
        Some(range) if range.is_empty() => None,
        Some(range) => Some(Some(format!("bytes={}-{}", range.start, range.end - 1))),
    }
}

fn content(doing: Doing, body: ByteStream) -> Content {
    stream::try_unfold((doing, body), |(doing, mut body)| async {
        match timeout(PIECE, body.next()).await {
            Ok(None) => Ok(None),
            Ok(Some(Ok(piece))) => Ok(Some((piece, (doing, body)))),
            Ok(Some(Err(error))) => Err(doing.broke_off(error)),
            Err(late) => Err(doing.broke_off(late)),
        }
    })
    .into_stream()
    .boxed()
}

fn entry(object: aws_sdk_s3::types::Object) -> Option<Entry> {
    let (bytes, modified) = (length(object.size()), modified(object.last_modified()));
    Some(Entry { key: object.key?, bytes, modified })
}

fn length(length: Option<i64>) -> u64 {
    length.and_then(|length| u64::try_from(length).ok()).unwrap_or(0)
}

fn modified(modified: Option<&DateTime>) -> SystemTime {
    modified.and_then(|time| SystemTime::try_from(*time).ok()).unwrap_or(SystemTime::UNIX_EPOCH)
}
