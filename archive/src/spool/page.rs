//! Counters that outlive the process: one page of a file, mapped into memory.
//!
//! A count is a store to memory, no system call. When the process is killed, the kernel still has the page, and gives it to whoever reads the
//! file next; so the counters are exact after SIGKILL. They are not after a power cut, when the disk has what the kernel last wrote: the
//! [ledger](super::ledger) knows that much at least.
//!
//! A page that the kernel writes back may make the next store to it wait for the disk. Where disks hang, the file belongs on a tmpfs that lives
//! as long as the folder: `Settings::counters`.

use std::{
    fs, io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use memmap2::{MmapOptions, MmapRaw};

/// Bytes of the file.
pub(super) const LENGTH: usize = 4096;
const WORDS: usize = LENGTH / 8;

/// The page.
#[derive(Debug)]
pub(super) struct Page {
    map: MmapRaw,
}

impl Page {
    /// Maps a file, and makes it if it is missing or has another length. All of it is zeros then.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        if file.metadata()?.len() != LENGTH as u64 {
            file.set_len(0)?;
            // Written, not only made longer: a page without a place on the disk would end the process when that is full.
            file.write_all_at(&[0; LENGTH], 0)?;
            file.sync_all()?;
        }
        let map = MmapOptions::new().len(LENGTH).map_raw(&file)?;
        // It is read from the disk once, now, and not when the disk fails. Where that isn't allowed it is so in nearly all cases anyway.
        let _ = map.lock();
        Ok(Self { map })
    }

    pub(super) fn load(&self, word: usize) -> u64 {
        self.word(word).load(Ordering::Acquire)
    }

    pub(super) fn store(&self, word: usize, value: u64) {
        self.word(word).store(value, Ordering::Release);
    }

    fn word(&self, word: usize) -> &AtomicU64 {
        assert!(word < WORDS, "the page has {WORDS} words");
        // SAFETY: the address is in the mapping, which is LENGTH bytes long, is mapped for reading and writing and lives as long as `self`;
        // it begins at a page, so each eighth byte is aligned. The file has LENGTH bytes, was not made by a hole, and is in a folder of ours
        // that is locked, so no other process of ours has it and nobody makes it shorter. In this process it is touched through these atomics
        // alone. Any bytes are a u64. What another process wrote to the file in spite of that would be a wrong number, and nothing worse.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().add(word)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_is_what_it_was_and_one_of_another_length_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page");
        let page = Page::open(&path).unwrap();
        assert_eq!(page.load(0), 0);
        page.store(0, 7);
        page.store(WORDS - 1, u64::MAX);
        // Another mapping sees it at once, as one of another process would.
        let again = Page::open(&path).unwrap();
        assert_eq!((again.load(0), again.load(WORDS - 1)), (7, u64::MAX));
        assert_eq!(fs::read(&path).unwrap()[..8], 7_u64.to_le_bytes());
        drop((page, again));
        fs::write(&path, "short").unwrap();
        assert_eq!(Page::open(&path).unwrap().load(0), 0);
    }
}
