//! One stored answer, head and body.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    ShowError, Stored, Value,
    explain::{Keyed, Question},
    list,
};
use crate::cache::{
    locate::{Located, locate},
    standing::Standing,
    store::{Object, Store},
};

/// A stored answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredHead {
    /// Which it is, and how it stands.
    pub stored: Stored,
    /// Its fields as they are stored; what is no UTF-8 in their values is replaced.
    pub headers: Vec<Value>,
}

/// The same, with its body.
#[derive(Debug)]
pub struct StoredAnswer {
    /// Its head as it stands before a body in a message of HTTP/1.1, which has the length of the body.
    pub head: Bytes,
    /// Pieces of its body, which share the memory of the store.
    pub body: Vec<Bytes>,
}

impl Question<'_> {
    /// The head of what is stored for the request.
    pub(super) fn head(&self) -> Result<StoredHead, ShowError> {
        let (object, stored) = self.find()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = object.fields().map(|(name, value)| Value { name: text(name), value: Some(text(value)) }).collect();
        Ok(StoredHead { stored, headers })
    }

    /// All of it.
    pub(super) fn answer(&self) -> Result<StoredAnswer, ShowError> {
        let (object, _) = self.find()?;
        let status = object.status();
        let mut head = format!("HTTP/1.1 {status}\r\n").into_bytes();
        for (name, value) in object.fields().filter(|(name, _)| *name != b"content-length") {
            for part in [name, b": ", value, b"\r\n"] {
                head.extend_from_slice(part);
            }
        }
        head.extend_from_slice(format!("content-length: {}\r\n\r\n", object.body_len()).as_bytes());
        Ok(StoredAnswer { head: head.into(), body: object.body().collect() })
    }

    fn find(&self) -> Result<(Object, Stored), ShowError> {
        let now = self.cache.now();
        let nothing = |why: &str| Err(ShowError::Nothing(why.to_owned()));
        self.keyed(|facts, _, keyed| {
            let Some(Keyed { mut key, .. }) = keyed else { return nothing("no rule with a section cache holds for it") };
            let end = key.len();
            let object = match locate(&self.cache.store(), Store::peek, &mut key, end, facts.headers) {
                Located::Object(object, _) => object,
                Located::Nothing(_) if key.len() > end => return nothing("nothing is stored for this variant"),
                Located::Nothing(_) => return nothing("nothing is stored for it"),
                Located::Unselectable => return nothing("its fields are too long to select a variant"),
            };
            match (Standing::of(&object, &self.cache.purges, now), list::stored(self.cache, &object, now)) {
                (Standing::Purged, _) => nothing("what was stored for it was purged"),
                (Standing::Dead, _) => nothing("what was stored for it is too old for any use"),
                (Standing::Kept(_), Some(stored)) => Ok((object, stored)),
                (Standing::Kept(_), None) => nothing("what was stored for it has just left"),
            }
        })?
    }
}
