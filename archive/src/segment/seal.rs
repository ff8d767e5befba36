//! Encryption: AES-256-GCM with a key for each segment, which a key of the user wraps. Who deletes that key shreds all that it wraps.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand,
};

use super::layout::Id;

/// Bytes that encryption adds.
pub(super) const TAG: usize = 16;

/// What a nonce is for. No two things of a segment have the same.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// The data of a frame.
    Data = 0,
    /// What its records are found by.
    Facts = 1,
}

/// A key that wraps data keys: in a file, or in a key service.
pub trait Keys: Send + Sync {
    /// Which key it is, as headers say it. At most 1024 bytes.
    fn id(&self) -> &str;

    /// The data key of a new segment. A key service may make them by itself.
    ///
    /// # Errors
    /// Why there is none.
    fn data_key(&self) -> Result<DataKey, KeyError> {
        DataKey::random()
    }

    /// Wraps the data key of a segment. At most 4096 bytes.
    ///
    /// # Errors
    /// Why it can't be wrapped.
    fn wrap(&self, segment: &Id, key: &DataKey) -> Result<Vec<u8>, KeyError>;

    /// Unwraps it.
    ///
    /// # Errors
    /// Why it can't be unwrapped: another key wrapped it, or it is gone.
    fn unwrap(&self, segment: &Id, key_id: &str, wrapped: &[u8]) -> Result<DataKey, KeyError>;
}

/// Why a key can't be had.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(pub String);

/// The key of a segment.
pub struct DataKey([u8; 32]);

impl DataKey {
    /// A new one.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn random() -> Result<Self, KeyError> {
        let mut key = [0; 32];
        rand::fill(&mut key).map_err(|_| KeyError("the system has no randomness".into()))?;
        Ok(Self(key))
    }

    /// One whose bytes are known.
    pub fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn cipher(&self) -> Cipher {
        Cipher(key(&self.0))
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey")
    }
}

/// A wrapping key that is at hand.
pub struct LocalKey {
    id: String,
    key: LessSafeKey,
}

impl LocalKey {
    /// A key by its name.
    pub fn new(id: impl Into<String>, bytes: &[u8; 32]) -> Self {
        Self { id: id.into(), key: key(bytes) }
    }
}

impl fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Keys for LocalKey {
    fn id(&self) -> &str {
        &self.id
    }

    /// A random nonce, then the encrypted key and its tag.
    fn wrap(&self, segment: &Id, key: &DataKey) -> Result<Vec<u8>, KeyError> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| KeyError("the system has no randomness".into()))?;
        let mut sealed = key.0.to_vec();
        let nonce_of = Nonce::assume_unique_for_key(nonce);
        let done = self.key.seal_in_place_append_tag(nonce_of, Aad::from(segment.0), &mut sealed);
        done.map_err(|_| KeyError("the data key can't be wrapped".into()))?;
        Ok([&nonce[..], &sealed].concat())
    }

    fn unwrap(&self, segment: &Id, key_id: &str, wrapped: &[u8]) -> Result<DataKey, KeyError> {
        if key_id != self.id {
            return Err(KeyError(format!("the key {key_id:?} is needed; this is {:?}", self.id)));
        }
        let wrong = || {
            KeyError(format!("the key {key_id:?} does not open it: it is another one of that name, or the header was changed"))
        };
        let (nonce, sealed) = wrapped.split_first_chunk::<NONCE_LEN>().ok_or_else(wrong)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.key.open_in_place(nonce, Aad::from(segment.0), &mut sealed).map_err(|_| wrong())?;
        Ok(DataKey((&*opened).try_into().map_err(|_| wrong())?))
    }
}

/// The id of a new segment.
pub(crate) fn random_id() -> Result<Id, KeyError> {
    let mut id = [0; 16];
    rand::fill(&mut id).map_err(|_| KeyError("the system has no randomness".into()))?;
    Ok(Id(id))
}

/// What encrypts the frames of a segment.
pub(super) struct Cipher(LessSafeKey);

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}

impl Cipher {
    /// Encrypts what lies from there on, and adds a tag. A frame's number is never used twice, also if the frame could not be written.
    pub(super) fn seal(&self, number: u32, purpose: Purpose, vouched: &[u8], data: &mut Vec<u8>) {
        let done = self.0.seal_in_place_append_tag(nonce(number, purpose), Aad::from(vouched), data);
        done.expect("a frame is far shorter than what the cipher allows");
    }

    /// Decrypts it. None if it is not what was encrypted.
    pub(super) fn open(&self, number: u32, purpose: Purpose, vouched: &[u8], mut data: Vec<u8>) -> Option<Vec<u8>> {
        let length = self.0.open_in_place(nonce(number, purpose), Aad::from(vouched), &mut data).ok()?.len();
        data.truncate(length);
        Some(data)
    }
}

fn nonce(number: u32, purpose: Purpose) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[..4].copy_from_slice(&(purpose as u32).to_le_bytes());
    nonce[4..8].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn key(bytes: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).expect("32 bytes are a key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_key_is_opened_by_what_wrapped_it_and_for_its_segment_alone() {
        let (one, other) = (LocalKey::new("one", &[1; 32]), LocalKey::new("one", &[2; 32]));
        let (segment, key) = (Id([7; 16]), DataKey::random().unwrap());
        let wrapped = one.wrap(&segment, &key).unwrap();
        assert_eq!(one.unwrap(&segment, "one", &wrapped).unwrap().as_bytes(), key.as_bytes());
        for error in [
            one.unwrap(&segment, "two", &wrapped),
            other.unwrap(&segment, "one", &wrapped),
            one.unwrap(&Id([8; 16]), "one", &wrapped),
            one.unwrap(&segment, "one", &wrapped[..40]),
            one.unwrap(&segment, "one", &[]),
        ] {
            let text = error.unwrap_err().to_string();
            assert!(text.contains("is needed") || text.contains("does not open it"), "{text}");
        }
    }
}
