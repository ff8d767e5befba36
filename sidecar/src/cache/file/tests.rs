use proptest::prelude::*;

use super::{
    super::{
        record::{self, tests::answer_of},
        semantics::meta::Meta,
        store::Parts,
    },
    *,
};

fn file_of(answers: &[Answer]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut file = Writer::begin(-7, &mut out);
    answers.iter().for_each(|answer| file.add(answer, &mut out).unwrap());
    file.end(&mut out);
    out
}

/// All pieces of a file that comes in parts of some length.
fn pieces(bytes: &[u8], part: usize, most: usize) -> Result<Vec<Piece>, Damaged> {
    let (mut reader, mut pieces) = (Reader::new(most), Vec::new());
    for part in bytes.chunks(part) {
        reader.push(part);
        while let Some(piece) = reader.read()? {
            pieces.push(piece);
        }
    }
    reader.finish()?;
    Ok(pieces)
}

fn answers(pieces: &[Piece]) -> Vec<Answer> {
    let records = pieces.iter().filter_map(|piece| if let Piece::Record(record) = piece { Some(record) } else { None });
    let read = |record: &Bytes| match record::read(record, LONGEST) {
        Ok(Record::Answer(answer)) => *answer,
        other => panic!("{other:?}"),
    };
    records.map(read).collect()
}

#[test]
fn what_is_written_is_read_again_however_it_comes() {
    let all = [answer_of(&[b'a'; 9000], b"news"), answer_of(b"", b""), answer_of(b"short", b"a,b")];
    let file = file_of(&all);
    for part in [1, 7, 100, file.len()] {
        let pieces = pieces(&file, part, LONGEST).unwrap();
        assert_eq!(pieces[0], Piece::Begun(-7));
        assert!(matches!(pieces.last(), Some(Piece::End(Counts { answers: 3, .. }))), "{pieces:?}");
        let read = answers(&pieces);
        for (read, written) in read.iter().zip(&all) {
            assert_eq!(read.object.encode(), written.object.encode());
            assert_eq!((read.meta, read.position, &read.tags), (written.meta, written.position, &written.tags));
        }
    }
    let empty = file_of(&[]);
    assert_eq!(pieces(&empty, 5, LONGEST).unwrap(), [Piece::Begun(-7), Piece::End(Counts::default())]);
}

#[test]
fn each_flipped_byte_and_each_cut_is_an_error_that_says_where() {
    let file = file_of(&[answer_of(&[b'a'; 2000], b"news"), answer_of(b"b", b"")]);
    for at in 0..file.len() {
        for bit in [0, at % 8, 7] {
            let mut wrong = file.clone();
            wrong[at] ^= 1 << bit;
            let damaged = pieces(&wrong, 64, LONGEST).unwrap_err();
            // A length that was damaged may reach to the end of the file.
            assert!(damaged.at <= file.len() as u64, "bit {bit} of byte {at}: {damaged}");
        }
        let cut = pieces(&file[..at], 64, LONGEST).unwrap_err();
        assert_eq!(cut, Damaged { at: at as u64, what: Damage::CutOff }, "cut at {at}");
    }
    let mut longer = file.clone();
    longer.push(0);
    assert_eq!(pieces(&longer, 64, LONGEST).unwrap_err(), Damaged { at: file.len() as u64, what: Damage::Behind });
}

#[test]
fn damages_are_told_by_what_they_are() {
    let file = file_of(&[answer_of(b"b", b"")]);
    let (first, end) = (HEADER as u64, file.len() as u64 - END as u64 - LENGTH as u64);
    let damage = |at: usize, byte: u8| {
        let mut wrong = file.clone();
        wrong[at] = byte;
        pieces(&wrong, 64, LONGEST).unwrap_err()
    };
    let other = Damaged { at: 0, what: Damage::Foreign };
    assert_eq!(pieces(b"PK\x03\x04", 1, LONGEST), Err(other));
    assert_eq!(pieces(b"{", 1, LONGEST), Err(other));
    assert_eq!(damage(3, 2), Damaged { at: 0, what: Damage::Version(2) });
    assert_eq!(damage(5, 99), Damaged { at: file.len() as u64 - 8, what: Damage::Sum });
    assert_eq!(damage(HEADER + 3, 0xff), Damaged { at: first, what: Damage::Length });
    assert_eq!(damage(HEADER + LENGTH + 20, 0xff), Damaged { at: first + 4, what: Damage::Record });
    assert_eq!(damage(end as usize + LENGTH, 9), Damaged { at: end + 4, what: Damage::Counts });
    assert_eq!(damage(3, 2).to_string(), "byte 0: it has version 2 of the format, and this program reads version 1");
}

#[test]
fn record_that_is_too_long_is_passed_over_and_never_held() {
    let noise: Vec<u8> = (0..200_000).map(|_| fastrand::u8(..)).collect();
    let file = file_of(&[answer_of(b"a", b""), answer_of(&noise, b""), answer_of(b"b", b"")]);
    let mut reader = Reader::new(100_000);
    let mut found = Vec::new();
    for part in file.chunks(1000) {
        reader.push(part);
        while let Some(piece) = reader.read().unwrap() {
            found.push(piece);
        }
        assert!(reader.held.len() <= 1000 + LENGTH, "{}", reader.held.len());
    }
    assert!(matches!(found[..], [_, Piece::Record(_), Piece::TooLong(200_000..), Piece::Record(_), Piece::End(_)]), "{found:?}");
    assert_eq!(reader.finish().unwrap().answers, 3);
}

#[test]
fn what_no_reader_takes_is_not_written() {
    let (mut out, long) = (Vec::new(), vec![0; LONGEST + 1]);
    let mut file = Writer::begin(0, &mut out);
    assert_eq!(file.add_record(&long, &mut out), Err(TooLong));
    assert_eq!(file.add_record(&[], &mut out), Err(TooLong));
    assert_eq!((out.len(), file.counts()), (HEADER, Counts::default()));
}

#[test]
fn urls_are_those_that_clients_ask_for() {
    let key = |scheme: &[u8]| {
        let mut key = vec![0];
        for text in [&b"shop/p/r"[..], scheme, b"a.example:81", b"/a"]
            .iter()
            .filter(|text| !(scheme.is_empty() && **text == b"a.example:81"))
        {
            key.extend_from_slice(&(text.len() as u32).to_be_bytes());
            key.extend_from_slice(text);
        }
        key.extend_from_slice(&[1, 0, 0, 0, 1, b'q']);
        key
    };
    let url = |scheme: &[u8]| {
        let Answer { meta, position, tags, .. } = answer_of(b"", b"");
        let parts = Parts { primary: &key(scheme), variant: b"", meta: b"", status: http::StatusCode::OK };
        let object = super::super::store::Object::head(parts, []).unwrap();
        url_of(&record::of_answer(&Answer { object, meta, position, tags }))
    };
    assert_eq!(url(b"http").as_deref(), Some("http://a.example:81/a?q"));
    assert_eq!(url(b""), None, "a key without a host");
    assert_eq!(url_of(b"none"), None);
}

fn any_answer() -> impl Strategy<Value = Answer> {
    let texts = (proptest::collection::vec(any::<u8>(), 0..3000), proptest::collection::vec(any::<u8>(), 0..40));
    (texts, any::<(u64, u64, i64, u64)>(), any::<(u16, u32)>()).prop_map(
        |((body, tags), (age, since, wall, keep), (status, date))| {
            let answer = answer_of(&body, &tags);
            let meta = Meta { initial_age: age, since, wall, keep, status, date, ..answer.meta };
            Answer { meta, ..answer }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_answers_come_back_as_they_were(written in proptest::collection::vec(any_answer(), 0..8), part in 1_usize..5000) {
        let read = answers(&pieces(&file_of(&written), part, LONGEST).unwrap());
        prop_assert_eq!(read.len(), written.len());
        for (read, written) in read.iter().zip(&written) {
            prop_assert_eq!(record::of_answer(read), record::of_answer(written));
        }
    }

    #[test]
    fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300), part in 1_usize..50) {
        let _ = pieces(&bytes, part, 1000);
        let headed = [&file_of(&[])[..HEADER], &bytes[..]].concat();
        let _ = pieces(&headed, part, 1000);
    }
}
