//! Counters that outlive the process: one page of a file.
//!
//! A count is one `pwrite` of eight bytes into the kernel's memory: a whole word within one page, so a SIGKILL comes before it or after it. When the
//! process is killed, the kernel still has the page, and gives it to whoever reads the file next; so the counters are exact after SIGKILL. They
//! are not after a power cut, when the disk has what the kernel last wrote: the [ledger](super::ledger) knows that much at least.
//!
//! The page is not mapped into memory, though that would cost no system call: a disk that fails or becomes read-only would then end the process,
//! and here it is an error that is counted.
//!
//! A disk that hangs may hold up a count. Where disks do, the file belongs on a tmpfs that lives as long as the folder: `Settings::counters`.

use std::{
    fs, io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Bytes of the file.
pub(super) const LENGTH: usize = 4096;
const WORDS: usize = LENGTH / 8;

/// The page.
#[derive(Debug)]
pub(super) struct Page {
    file: fs::File,
}

impl Page {
    /// Opens a file, and makes it if it is missing or has another length. All of it is zeros then.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        if file.metadata()?.len() != LENGTH as u64 {
            file.set_len(0)?;
            // Written, not only made longer: so it has its place also when the disk is full.
            file.write_all_at(&[0; LENGTH], 0)?;
            file.sync_all()?;
        }
        Ok(Self { file })
    }

    pub(super) fn load(&self, word: usize) -> io::Result<u64> {
        let mut value = [0; 8];
        self.file.read_exact_at(&mut value, place(word))?;
        Ok(u64::from_le_bytes(value))
    }

    pub(super) fn store(&self, word: usize, value: u64) -> io::Result<()> {
        self.file.write_all_at(&value.to_le_bytes(), place(word))
    }
}

fn place(word: usize) -> u64 {
    assert!(word < WORDS, "the page has {WORDS} words");
    word as u64 * 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_is_what_it_was_and_one_of_another_length_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page");
        let page = Page::open(&path).unwrap();
        assert_eq!(page.load(0).unwrap(), 0);
        page.store(0, 7).unwrap();
        page.store(WORDS - 1, u64::MAX).unwrap();
        // Whoever else opens it sees it at once, as another process would.
        let again = Page::open(&path).unwrap();
        assert_eq!((again.load(0).unwrap(), again.load(WORDS - 1).unwrap()), (7, u64::MAX));
        assert_eq!(fs::read(&path).unwrap()[..8], 7_u64.to_le_bytes());
        fs::write(&path, "short").unwrap();
        assert_eq!(Page::open(&path).unwrap().load(0).unwrap(), 0);
    }
}
