use http::StatusCode;

use super::{
    super::{semantics::meta::Flags, store::Parts},
    *,
};

const MOST: usize = 1 << 20;

/// What an answer is judged by.
pub(in crate::cache) fn meta() -> Meta {
    Meta {
        initial_age: 1,
        since: 2,
        wall: -3,
        lifetime: 4,
        while_revalidate: 5,
        if_error: 6,
        keep: 7,
        date: 8,
        status: 200,
        flags: Flags::VALIDATOR,
        took: 9,
    }
}

/// An answer of the key `key`.
pub(in crate::cache) fn answer_of(body: &[u8], tags: &[u8]) -> Answer {
    let parts = Parts { primary: b"key", variant: b"gzip", meta: b"notes", status: StatusCode::OK };
    let head = Object::head(parts, [(&b"content-type"[..], &b"text/plain"[..]), (b"x-a", b"b")]).unwrap();
    let position = Position { generation: Generation::from_bytes([7; 16]), at: 1 << 50 };
    Answer { object: head.with_body(&[bytes::Bytes::copy_from_slice(body)]), meta: meta(), position, tags: tags.to_vec() }
}

fn again(bytes: &[u8]) -> Answer {
    match read(bytes, MOST) {
        Ok(Record::Answer(answer)) => *answer,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_written_is_read_again() {
    let mut noise = vec![0; 100_000];
    fastrand::Rng::with_seed(1).fill(&mut noise);
    for (body, packs) in [(&b""[..], false), (b"short", false), (&[b'a'; 100_000], true), (&noise, false)] {
        let answer = answer_of(body, b"news, sport");
        let bytes = of_answer(&answer);
        assert_eq!(bytes[4] == PACKED, packs, "{} bytes", body.len());
        assert!(!packs || bytes.len() < 1000, "{}", bytes.len());
        let read = again(&bytes);
        assert_eq!((read.meta, read.position, &read.tags[..]), (answer.meta, answer.position, &b"news, sport"[..]));
        assert_eq!(read.object.encode(), answer.object.encode());
    }
    let vary = Vary::new(["Accept-Encoding", "X-A"]).unwrap();
    assert!(matches!(read(&of_vary(&vary, 7), MOST), Ok(Record::Vary { vary: read, era: 7 }) if read == vary));
}

#[test]
fn every_flipped_bit_and_every_cut_is_seen() {
    for bytes in
        [of_answer(&answer_of(&[b'a'; 2000], b"news")), of_answer(&answer_of(b"a", b"")), of_vary(&Vary::new(["a"]).unwrap(), 0)]
    {
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1 << (at % 8);
            // The kind is no part of the checksum, but another kind reads nothing of it.
            assert!(read(&wrong, MOST).is_err(), "bit in byte {at} of {}", bytes.len());
            assert!(read(&bytes[..at], MOST).is_err(), "cut at {at}");
        }
    }
}

#[test]
fn what_unfolds_too_far_is_refused_before_it_does() {
    let bytes = of_answer(&answer_of(&[0; 600_000], b""));
    assert!(bytes.len() < 1000 && read(&bytes, MOST).is_ok());
    assert_eq!(read(&bytes, 600_000).err(), Some(Unreadable::TooLong));
    assert_eq!(read(&of_answer(&answer_of(b"", b"")), 10).err(), Some(Unreadable::TooLong));
    let frame = zstd::bulk::compress(&[0; 600_000], 1).unwrap();
    let mut lies = 10_u32.to_le_bytes().to_vec();
    lies.extend_from_slice(&frame);
    assert!(read(&sealed(PACKED, &lies), MOST).is_err(), "a length that is not its own");
}
