//! Where the bytes of a segment come from.

use std::{fs, io, os::unix::fs::FileExt as _};

/// Bytes that can be read from any place on.
pub trait Source {
    /// How many there are.
    ///
    /// # Errors
    /// Why that can't be known.
    fn length(&self) -> io::Result<u64>;

    /// Reads so many from there on; that they are there is known.
    ///
    /// # Errors
    /// Why they can't be read.
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

impl Source for &[u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let bytes = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)?.get(..into.len()));
        into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl Source for fs::File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(into, offset)
    }
}

impl<S: Source> Source for &S {
    fn length(&self) -> io::Result<u64> {
        S::length(self)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        S::read(self, offset, into)
    }
}
