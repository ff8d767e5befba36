//! Object stores behind one trait: a [folder](mod@file), and buckets of [S3](s3) and of what speaks like it.
//!
//! An object is there whole or not at all: what is being put is seen by nobody. All waits are bounded, all that is held is, too: a part of
//! an object, a page of a listing. Errors say which object, in which store, and what would be right.

mod error;
pub mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod key;
mod location;
#[cfg(feature = "s3")]
pub mod s3;
pub mod segment;
pub mod spool;

use std::{fmt, io, ops::Range, time::SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use self::{
    error::{Error, Kind},
    key::Key,
    location::Location,
};

/// What is to be put: bytes of a length that nobody knows before its end. An error of it is one of [`Kind::Source`], and nothing is put.
pub type Body = BoxStream<'static, io::Result<Bytes>>;

/// What is got, as it comes.
pub type Content = BoxStream<'static, Result<Bytes, Error>>;

/// Objects by their keys.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync {
    /// Puts an object: others see it when it is whole, and if this fails, or is given up, what was there before. The number of its bytes.
    /// What was begun is cleaned up on the runtime of now, which has to live until that [is done](Store::settled).
    ///
    /// # Errors
    /// Why it is not put.
    async fn put(&self, key: &Key, body: Body, condition: Condition) -> Result<u64, Error>;

    /// An object, or bytes of it, counted from 0; what lies behind its end isn't there.
    ///
    /// # Errors
    /// That there is none ([`Kind::NotFound`]), or why it can't be had.
    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Got, Error>;

    /// What is known of an object. None if there is none.
    ///
    /// # Errors
    /// Why that can't be known.
    async fn head(&self, key: &Key) -> Result<Option<Entry>, Error>;

    /// The objects whose keys begin so, in the order of their bytes as far as the store keeps it; page by page, as they are asked for.
    fn list(&self, prefix: &str) -> BoxStream<'static, Result<Entry, Error>>;

    /// Takes an object away. That there is none is no error.
    ///
    /// # Errors
    /// Why it is still there.
    async fn delete(&self, key: &Key) -> Result<(), Error>;

    /// Waits until nothing is being put any more, and until what was given up has left nothing behind: also if what put it was dropped.
    async fn settled(&self);

    /// Where an object is, as errors name it.
    fn place(&self, key: &str) -> String;
}

/// When an object is put.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Condition {
    /// Always: it takes the place of one that is there.
    #[default]
    Always,
    /// If there is none: else it fails with [`Kind::Exists`].
    IfAbsent,
}

/// An object that is there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Its bytes.
    pub bytes: u64,
    /// When it was put, by the clock of the store.
    pub modified: SystemTime,
}

/// An object that is being read.
pub struct Got {
    /// What is known of the whole of it.
    pub entry: Entry,
    /// The bytes that were asked for.
    pub content: Content,
}

impl fmt::Debug for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Got").field("entry", &self.entry).finish_non_exhaustive()
    }
}
