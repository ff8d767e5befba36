//! Reads records, on threads that may wait for the disk.

use std::{fs::File, io, sync::Arc, thread, time::Duration};

use tokio::sync::oneshot;

use super::{LONGEST, OVERHEAD, Shared, files, index::Place, queue::Next};
use crate::cache::record::{self, Record};

/// A record that somebody waits for.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) place: Place,
    pub(super) file: Arc<File>,
    pub(super) told: oneshot::Sender<Content>,
}

/// What is at a place.
#[derive(Debug)]
pub(super) enum Content {
    Record(Box<Record>),
    /// Not what was written there.
    Damaged,
    Failed,
}

/// Reads for a disk what comes, until that is dropped.
pub(super) fn spawn(shared: &Arc<Shared>, threads: usize) {
    for _ in 0..threads {
        let reading = Arc::clone(shared);
        let spawned = thread::Builder::new().name("disk-read".to_owned()).spawn(move || {
            loop {
                match reading.looks.next(Duration::MAX) {
                    Next::One(look) => read(&reading, look),
                    Next::Idle => {}
                    Next::Closed => return,
                }
            }
        });
        if let Err(why) = spawned {
            tracing::error!(%why, "A thread that reads the cache on disk could not be started.");
        }
    }
}

fn read(shared: &Shared, Look { place, file, told }: Look) {
    if told.is_closed() {
        return; // nobody waits for it any more
    }
    let content = match files::read(&file, place) {
        Ok(bytes) => {
            shared.metrics.read(bytes.len());
            let most = usize::try_from(LONGEST + OVERHEAD).unwrap_or(usize::MAX);
            record::read(&bytes, most).map_or(Content::Damaged, |record| Content::Record(Box::new(record)))
        }
        Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => Content::Damaged,
        Err(_) => Content::Failed,
    };
    // Who waited may have gone on.
    let _ = told.send(content);
}
