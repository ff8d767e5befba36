//! Objects and their form outside memory.

use http::HeaderValue;

use super::*;

#[test]
fn object_gives_back_what_was_put_in() {
    for len in [0, 1, INLINE, INLINE + 1, CHUNK, 5 * CHUNK + 7] {
        let object = head(b"k", b"v").with_body(&[body_of(len)]);
        assert_eq!((object.primary(), object.variant(), object.meta()), (&b"k"[..], &b"v"[..], &b"notes"[..]));
        assert_eq!(object.status(), StatusCode::OK);
        assert!(object.fields().eq(FIELDS), "{len}");
        assert_eq!(object.body_len(), len as u64);
        assert_eq!(joined(&object), body_of(len), "{len}");
        assert!(object.body().all(|piece| piece.len() <= CHUNK));
        let map = object.headers(0);
        assert_eq!(map.len(), FIELDS.len());
        assert_eq!(map.get_all("set-cookie").iter().map(HeaderValue::as_bytes).collect::<Vec<_>>(), [&b"a=1"[..], b"b=\xff2"]);
        assert_eq!(map["x-unheard-of"], "");
    }
}

#[test]
fn pieces_become_chunks_of_the_right_size() {
    let pieces = [body_of(100), body_of(20_000), body_of(10), body_of(70_000), body_of(CHUNK), body_of(9_000)];
    let object = head(b"k", b"").with_body(&pieces);
    assert_eq!(joined(&object), pieces.concat());
    let lengths: Vec<usize> = object.body().map(|piece| piece.len()).collect();
    assert_eq!(lengths, [100, 20_000, CHUNK, CHUNK, 10 + 70_000 - 2 * CHUNK, CHUNK, 9_000]);
    let shared = object.body().nth(1).expect("second");
    assert_eq!(shared.as_ptr(), pieces[1].as_ptr(), "not copied");
}

#[test]
fn refreshed_object_keeps_key_and_body() {
    let fields = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("\"v2\""))]);
    for len in [0, 10, 3 * CHUNK] {
        let old = head(b"k", b"v").with_body(&[body_of(len)]);
        let new = old.refreshed(b"later", StatusCode::NOT_FOUND, &fields).expect("fits");
        assert!(new.is_for(b"k", b"v"));
        assert_eq!((new.meta(), new.status(), joined(&new)), (&b"later"[..], StatusCode::NOT_FOUND, joined(&old)));
        assert_eq!(new.headers(0), fields);
    }
}

#[test]
fn what_http_forbids_is_no_object() {
    let parts = Parts { primary: b"k", variant: &[], meta: &[], status: StatusCode::OK };
    for (name, value) in [(&b"a b"[..], &b"1"[..]), (b"", b"1"), (b"a", b"1\r\nb: 2"), (b"etag", b"\0"), (b"Etag", b"1")] {
        assert_eq!(Object::head(parts, [(name, value)]).err(), Some(Unfit::Field), "{name:?}");
    }
    assert_eq!(Object::head(parts, vec![(&b"a"[..], &b""[..]); 65_536]).err(), Some(Unfit::TooLong));
    assert_eq!(Object::head(Parts { meta: &vec![0; 1 << 21], ..parts }, []).err(), Some(Unfit::TooLong));
}

#[test]
fn every_flipped_bit_and_every_cut_is_seen() {
    for len in [0, 40, INLINE + 1] {
        let bytes = head(b"http://a/b", b"gzip").with_body(&[body_of(len)]).encode();
        let whole = Object::decode(&bytes).expect("as written");
        assert_eq!((joined(&whole).len(), whole.encode()), (len, bytes.clone()));
        // A long one is body for the most part, where one place is as good as the next.
        let step = if len > INLINE { 61 } else { 1 };
        for at in (0..bytes.len()).filter(|at| *at < 400 || at % step == 0) {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(Object::decode(&flipped).is_err(), "bit {bit} of byte {at}");
            }
            assert!(Object::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert!(Object::decode(&[&bytes[..], b"x"].concat()).is_err());
    }
}

proptest! {
    /// Whoever can write to Redis can make the checksum right.
    #[test]
    fn foreign_bytes_with_a_right_checksum_do_no_harm(
        flips in prop::collection::vec((16usize..200, any::<u8>()), 0..6),
        cut in prop::option::of(0usize..200),
        len in prop_oneof![Just(0usize), Just(30), Just(INLINE + 9)],
    ) {
        let mut bytes = head(b"http://a/b", b"gzip").with_body(&[body_of(len)]).encode();
        for (at, value) in flips {
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
        }
        bytes.truncate(cut.map_or(bytes.len(), |cut| cut.max(12)));
        seal(&mut bytes);
        if let Ok(object) = Object::decode(&bytes) {
            prop_assert_eq!(joined(&object).len() as u64, object.body_len());
            prop_assert_eq!(object.headers(0).len(), object.fields().count());
            prop_assert_eq!(object.encode(), bytes);
            let _ = (object.meta().len(), object.status(), object.primary().len(), object.variant().len());
        }
    }

    #[test]
    fn a_part_of_a_body_is_that_part(len in 0usize..200_000, from in 0u64..210_000, more in 0u64..150_000) {
        let object = head(b"k", b"").with_body(&[body_of(len)]);
        let part: Vec<u8> = object.part(from..from + more).flat_map(|piece| piece.to_vec()).collect();
        let (from, to) = ((from as usize).min(len), ((from + more) as usize).min(len));
        prop_assert_eq!(part, body_of(len)[from..to].to_vec());
    }
}
