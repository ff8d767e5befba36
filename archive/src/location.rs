//! Where one object is, as people write it: `s3://bucket/key`, `file:///folder/name`.

use std::path::PathBuf;

use crate::{Error, Key, Kind};

/// A store, and an object of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Location {
    /// A file in a folder.
    File {
        /// The folder.
        folder: PathBuf,
        /// The name in it.
        key: Key,
    },
    /// An object in a bucket.
    S3 {
        /// The bucket.
        bucket: String,
        /// The object in it.
        key: Key,
    },
}

impl Location {
    /// Reads what people write.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |what: &'static str| Error::new(Kind::Wrong, format!("{text:?}"), what);
        let like = "write it like s3://bucket/key or file:///folder/name";
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, key) = rest.split_once('/').filter(|(bucket, _)| !bucket.is_empty()).ok_or_else(|| wrong(like))?;
            return Ok(Self::S3 { bucket: bucket.to_owned(), key: Key::new(key)? });
        }
        let path = text.strip_prefix("file://").filter(|path| path.starts_with('/')).ok_or_else(|| wrong(like))?;
        let (folder, name) = path.rsplit_once('/').ok_or_else(|| wrong(like))?;
        let folder = if folder.is_empty() { "/" } else { folder };
        Ok(Self::File { folder: folder.into(), key: Key::new(name)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_or_refused_with_what_is_right() {
        let key = |text: &str| Key::new(text).unwrap();
        for (text, expected) in [
            ("s3://b/a/b.fxc", Location::S3 { bucket: "b".to_owned(), key: key("a/b.fxc") }),
            ("file:///var/a.fxc", Location::File { folder: "/var".into(), key: key("a.fxc") }),
            ("file:///a.fxc", Location::File { folder: "/".into(), key: key("a.fxc") }),
        ] {
            assert_eq!(Location::parse(text).unwrap(), expected);
        }
        for wrong in
            ["", "a.fxc", "/a", "s3://", "s3:///a", "s3://b", "s3://b/", "file://a/b", "file:///", "gs://b/a", "s3://b/../a"]
        {
            assert_eq!(Location::parse(wrong).map_err(|error| error.kind()), Err(Kind::Wrong), "{wrong}");
        }
    }
}
