//! What the cache itself notes of a stored answer, as bytes beside its head.

use super::{
    purge::{Name, Stamp},
    semantics::meta::{Flags, Meta},
    store::Object,
};

/// Bytes that judge its age.
pub(super) const META: usize = 68;
/// And with the purges that were known when its fetch began, and the number of names by which it may be purged. Behind them stand these names,
/// and its tags as they came, for other processes.
const LEN: usize = META + 12 + 2;
/// Bytes of a name.
const NAME: usize = 8;
/// Names that are kept; who has more tags is purged by the first of them.
const NAMES: usize = 4096;

/// By what an answer may be purged, besides its URL.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Names {
    /// Of its policy and its tags, as this process names them.
    pub(super) names: Vec<Name>,
    /// The tags as they came, for other processes; empty if there are none.
    pub(super) tags: Vec<u8>,
}

impl Names {
    /// These, or those of an older answer if this one's has listed no tags.
    pub(super) fn or_of(self, older: Self) -> Self {
        // One is that of its policy.
        if self.names.len() > 1 { self } else { older }
    }
}

/// Writes notes.
pub(super) fn write(meta: &Meta, stamp: Stamp, Names { names, tags }: &Names) -> Vec<u8> {
    let names = &names[..names.len().min(NAMES)];
    let mut bytes = Vec::with_capacity(LEN + NAME * names.len() + tags.len());
    bytes.extend_from_slice(&of_meta(meta));
    bytes.extend_from_slice(&stamp.bytes());
    bytes.extend_from_slice(&(names.len() as u16).to_le_bytes());
    names.iter().for_each(|name| bytes.extend_from_slice(&name.bytes()));
    bytes.extend_from_slice(tags);
    bytes
}

/// What its age is judged by, as bytes.
pub(super) fn of_meta(meta: &Meta) -> [u8; META] {
    let Meta { initial_age, since, wall, lifetime, while_revalidate, if_error, keep, date, status, flags, took } = *meta;
    let mut bytes = [0; META];
    let longs = [initial_age, since, wall.cast_unsigned(), lifetime, while_revalidate, if_error, keep];
    for (place, long) in bytes.chunks_exact_mut(8).zip(longs) {
        place.copy_from_slice(&long.to_le_bytes());
    }
    bytes[56..60].copy_from_slice(&date.to_le_bytes());
    bytes[60..62].copy_from_slice(&status.to_le_bytes());
    bytes[62..64].copy_from_slice(&flags.bits().to_le_bytes());
    bytes[64..].copy_from_slice(&took.to_le_bytes());
    bytes
}

/// Reads the notes of an object. None if they are none of ours.
pub(super) fn read(object: &Object) -> Option<Meta> {
    object.meta().get(..LEN)?.first_chunk().map(to_meta)
}

/// From what [`of_meta`] made.
pub(super) fn to_meta(bytes: &[u8; META]) -> Meta {
    let (longs, _) = bytes.as_chunks::<8>();
    let long = |place: usize| u64::from_le_bytes(longs[place]);
    Meta {
        initial_age: long(0),
        since: long(1),
        wall: long(2).cast_signed(),
        lifetime: long(3),
        while_revalidate: long(4),
        if_error: long(5),
        keep: long(6),
        date: u32::from_le_bytes([bytes[56], bytes[57], bytes[58], bytes[59]]),
        status: u16::from_le_bytes([bytes[60], bytes[61]]),
        flags: Flags::from_bits(u16::from_le_bytes([bytes[62], bytes[63]])),
        took: u32::from_le_bytes([bytes[64], bytes[65], bytes[66], bytes[67]]),
    }
}

/// The purges that were known when its fetch began; of what has no notes, none.
pub(super) fn stamp(object: &Object) -> Stamp {
    let bytes = object.meta().get(META..).and_then(<[u8]>::first_chunk);
    bytes.map_or_else(Stamp::default, |bytes| Stamp::from_bytes(*bytes))
}

/// By what it may be purged.
pub(super) fn names(object: &Object) -> Names {
    let Some((front, rest)) = object.meta().split_at_checked(LEN) else { return Names::default() };
    let count = usize::from(u16::from_le_bytes([front[LEN - 2], front[LEN - 1]]));
    let (names, tags) = rest.split_at_checked(count * NAME).unwrap_or_default();
    let (names, _) = names.as_chunks();
    Names { names: names.iter().map(|name| Name::from_bytes(*name)).collect(), tags: tags.to_vec() }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::cache::store::Parts;

    fn object(notes: &[u8]) -> Object {
        let parts = Parts { primary: b"key", variant: b"", meta: notes, status: StatusCode::OK };
        Object::head(parts, []).unwrap()
    }

    #[tokio::test]
    async fn what_is_written_is_read_again() {
        let meta = Meta {
            initial_age: 1,
            since: 2,
            wall: -3,
            lifetime: 4,
            while_revalidate: 5,
            if_error: 6,
            keep: u64::MAX,
            date: 7,
            status: 404,
            flags: Flags::NO_CACHE.and(Flags::VALIDATOR),
            took: 8,
        };
        let purges = crate::PodPurges::new("pod");
        purges.purge(&serde_json::from_str(r#"{"all": true}"#).unwrap(), std::time::Duration::MAX).await.unwrap();
        let names = vec![purges.naming().tag("a"), purges.naming().policy("b")];
        let names = Names { names, tags: b"a".to_vec() };
        let object = object(&write(&meta, purges.stamp(), &names));
        assert_eq!((read(&object), stamp(&object)), (Some(meta), purges.stamp()));
        assert_eq!(super::names(&object), names);
    }

    #[test]
    fn notes_of_another_length_are_none() {
        assert_eq!(read(&object(&[0; 77])), None);
        assert_eq!(read(&object(&[])), None);
    }
}
