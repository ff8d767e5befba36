//! Where a file waits until all of it has come and is whole.

use std::{fs::File, io, path::Path, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio::{
    io::{AsyncSeekExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::import::longest;
use crate::cache::{
    Cache,
    file::{Damaged, Reader},
};

/// How long bytes may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// More bytes that are taken: a file has some that no answer has.
const MARGIN: u64 = 1 << 20;

/// A file without a name, which is gone when this is dropped, whatever happens to this process.
pub(in crate::cache) struct Spool {
    file: tokio::fs::File,
    /// Bytes that it may hold.
    most: u64,
}

/// Why nothing of a file was taken.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// What is wrong with it.
    #[error("nothing of the file was taken: {0}")]
    Damaged(#[from] Damaged),
    /// It has more bytes than the cache could hold.
    #[error("nothing of the file was taken: it has more than the {0} bytes that may be taken")]
    TooLong(u64),
    /// It has not come whole.
    #[error("nothing of the file was taken: it broke off: {0}")]
    BrokeOff(String),
    /// There is no place to keep it in the meantime.
    #[error("nothing of the file was taken: it can't be kept until it is whole: {0}")]
    Io(#[source] io::Error),
}

impl Spool {
    /// In a folder, for no more bytes than that, and than the cache may hold.
    pub(in crate::cache) async fn new(folder: &Path, most: u64, cache: &Cache) -> Result<Self, SpoolError> {
        let folder = folder.to_owned();
        let file = tokio::task::spawn_blocking(move || tempfile::tempfile_in(folder)).await;
        let file = file.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into())).map_err(SpoolError::Io)?;
        Ok(Self { file: tokio::fs::File::from_std(file), most: most.min(cache.size()).saturating_add(MARGIN) })
    }

    /// Takes a file. An error if it isn't whole.
    pub(in crate::cache) async fn take<E: std::fmt::Display>(
        mut self,
        cache: &Cache,
        mut bytes: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<File, SpoolError> {
        let (mut reader, mut taken) = (Reader::new(longest(cache)), 0);
        loop {
            let piece = match timeout(PATIENCE, bytes.next()).await {
                Ok(None) => break,
                Ok(Some(Ok(piece))) => piece,
                Ok(Some(Err(error))) => return Err(SpoolError::BrokeOff(error.to_string())),
                Err(_) => return Err(SpoolError::BrokeOff(format!("nothing came for {} s", PATIENCE.as_secs()))),
            };
            taken += piece.len() as u64;
            if taken > self.most {
                return Err(SpoolError::TooLong(self.most));
            }
            reader.push(&piece);
            while reader.read()?.is_some() {}
            self.file.write_all(&piece).await.map_err(SpoolError::Io)?;
        }
        reader.finish()?;
        self.file.flush().await.map_err(SpoolError::Io)?;
        self.file.rewind().await.map_err(SpoolError::Io)?;
        Ok(self.file.into_std().await)
    }
}
