//! Objects in a bucket or a folder, from which files come and to which they go.

use std::{
    fmt,
    fs::File,
    io::{Seek as _, SeekFrom, Write as _},
};

use archive::{Condition, Kind, Location, Store, file::Folder, s3};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::progress;
use crate::{args::switch, command::block_on, failure::Failure};

/// Bytes of a piece.
const PIECE: usize = 256 << 10;

/// Where buckets are.
#[derive(clap::Args)]
#[command(next_help_heading = "Buckets")]
pub(super) struct Bucket {
    /// Where buckets are, such as http://minio:9000; without it at AWS
    #[arg(long, env = "FETCHR_S3_ENDPOINT", value_name = "URL")]
    s3_endpoint: Option<String>,
    /// Their region; without it that of the environment
    #[arg(long, env = "FETCHR_S3_REGION", value_name = "NAME")]
    s3_region: Option<String>,
    /// Whether the bucket's name stands in the path; without it, where there is an endpoint
    #[arg(
        long,
        env = "FETCHR_S3_PATH_STYLE",
        value_name = "true|false",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        value_parser = switch()
    )]
    s3_path_style: Option<bool>,
}

/// One object.
pub(super) struct Remote<'a> {
    location: Location,
    bucket: &'a Bucket,
    text: &'a str,
}

impl<'a> Remote<'a> {
    /// Reads its URL.
    pub(super) fn parse(text: &'a str, bucket: &'a Bucket) -> Result<Self, Failure> {
        let location = Location::parse(text).map_err(|error| Failure::usage(error.to_string()))?;
        Ok(Self { location, bucket, text })
    }

    /// Puts a file there; with `force` also in the place of one that is there.
    pub(super) fn put(&self, file: File, force: bool) -> Result<(), Failure> {
        let bar = progress::bytes(file.metadata().ok().map(|known| known.len()));
        let condition = if force { Condition::Always } else { Condition::IfAbsent };
        let body = stream::try_unfold(tokio::fs::File::from_std(file), move |mut file| {
            let bar = bar.clone();
            async move {
                let mut piece = Vec::with_capacity(PIECE);
                tokio::io::AsyncReadExt::read_buf(&mut file, &mut piece).await?;
                bar.inc(piece.len() as u64);
                Ok((!piece.is_empty()).then_some((piece.into(), file)))
            }
        });
        block_on(async {
            let (store, key) = self.open().await;
            store.put(key, body.boxed(), condition).await.map_err(|error| failed(&error))?;
            Ok(())
        })
    }

    /// Gets it into a file that has no name.
    pub(super) fn get(&self) -> Result<File, Failure> {
        let nowhere = |e: std::io::Error| Failure::new(format!("there is no place for a file: {e}"));
        let mut file = tempfile::tempfile().map_err(nowhere)?;
        block_on(async {
            let (store, key) = self.open().await;
            let mut got = store.get(key, None).await.map_err(|error| failed(&error))?;
            let bar = progress::bytes(Some(got.entry.bytes));
            while let Some(piece) = got.content.try_next().await.map_err(|error| failed(&error))? {
                file.write_all(&piece).map_err(nowhere)?;
                bar.inc(piece.len() as u64);
            }
            bar.finish_and_clear();
            file.seek(SeekFrom::Start(0)).map_err(nowhere)?;
            Ok(file)
        })
    }

    async fn open(&self) -> (Box<dyn Store>, &archive::Key) {
        match &self.location {
            Location::File { folder, key } => (Box::new(Folder::new(folder)), key),
            Location::S3 { bucket, key } => {
                let Bucket { s3_endpoint, s3_region, s3_path_style } = self.bucket;
                let settings = s3::Settings {
                    bucket: bucket.clone(),
                    region: s3_region.clone(),
                    endpoint: s3_endpoint.clone(),
                    path_style: *s3_path_style,
                    credentials: s3::Credentials::Chain,
                };
                (Box::new(s3::Bucket::open(&settings).await), key)
            }
        }
    }
}

impl fmt::Display for Remote<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

fn failed(error: &archive::Error) -> Failure {
    match error.kind() {
        Kind::Unavailable => Failure::unreachable(error.chain()),
        Kind::Exists => Failure::new(error.to_string()).hint("--force takes its place"),
        _ => Failure::new(error.chain()),
    }
}
