//! With what a file begins.

use bytes::{Buf as _, BufMut as _};

use super::{COMPATIBLE, ENCRYPTED, HEADER, HEADER_MARK, Id, MAX_HEADER, VERSION, frame, id, narrow, open, take};

/// The beginning of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Header {
    /// The version that it was written in.
    pub version: u16,
    /// The lowest version of a reader that may read it.
    pub compatible: u16,
    /// Whose frames are in it.
    pub id: Id,
    /// When it was begun, in nanoseconds since 1970.
    pub created: i64,
    /// What its frames are encrypted with.
    pub lock: Option<Lock>,
}

/// The data key of a segment, wrapped.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lock {
    /// Which key it is wrapped by.
    pub key_id: String,
    /// The data key.
    pub wrapped: Vec<u8>,
}

impl Header {
    pub(in crate::segment) fn new(id: Id, created: i64, lock: Option<Lock>) -> Self {
        Self { version: VERSION, compatible: COMPATIBLE, id, created, lock }
    }

    pub(in crate::segment) fn write(&self, out: &mut Vec<u8>) {
        frame(out, HEADER, |out| {
            out.put_slice(HEADER_MARK);
            out.put_u16_le(self.version);
            out.put_u16_le(self.compatible);
            let (key_id, wrapped) =
                self.lock.as_ref().map_or((&[][..], &[][..]), |lock| (lock.key_id.as_bytes(), &lock.wrapped[..]));
            out.put_u16_le(if self.lock.is_some() { ENCRYPTED } else { 0 });
            out.put_u16_le(narrow(key_id.len()));
            out.put_u16_le(narrow(wrapped.len()));
            out.put_u16_le(0);
            out.put_slice(&self.id.0);
            out.put_i64_le(self.created);
            out.put_slice(key_id);
            out.put_slice(wrapped);
        });
    }

    /// Reads the header with which a file begins, and how long it is. None if there is none that is whole.
    pub fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let (mut rest, length) = open(bytes, HEADER, HEADER_MARK, MAX_HEADER)?;
        let (version, compatible) = (rest.try_get_u16_le().ok()?, rest.try_get_u16_le().ok()?);
        let flags = rest.try_get_u16_le().ok()?;
        let (key_id, wrapped) = (rest.try_get_u16_le().ok()?, rest.try_get_u16_le().ok()?);
        rest.try_get_u16_le().ok()?;
        let (id, created) = (id(&mut rest)?, rest.try_get_i64_le().ok()?);
        let key_id = take(&mut rest, key_id.into())?;
        let wrapped = take(&mut rest, wrapped.into())?.to_vec();
        let lock = match flags & ENCRYPTED {
            0 => None,
            _ => Some(Lock { key_id: String::from_utf8(key_id.to_vec()).ok()?, wrapped }),
        };
        Some((Self { version, compatible, id, created, lock }, length))
    }
}
