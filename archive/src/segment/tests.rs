use std::{collections::HashSet, io::Read as _};

use proptest::prelude::*;
use twox_hash::XxHash3_64;

use super::{layout::PREFIX, reader::decode, *};

const KEY: [u8; 32] = [9; 32];

fn key() -> LocalKey {
    LocalKey::new("key-1", &KEY)
}

/// What is written: records with their times and statuses, and after which of them a frame ends.
#[derive(Clone, Debug)]
struct Written {
    records: Vec<(Vec<u8>, i64, u16)>,
    ends: HashSet<usize>,
}

fn written() -> impl Strategy<Value = Written> {
    let byte = prop_oneof![Just(b'a'), any::<u8>().prop_filter("it is one line", |byte| *byte != b'\n')];
    let record = (prop::collection::vec(byte, 1..60), -5..5_i64, 100..600_u16);
    let ends = prop::collection::hash_set(0..40_usize, 0..8);
    (prop::collection::vec(record, 0..40), ends).prop_map(|(records, ends)| Written { records, ends })
}

/// A file, and where each frame of it ends, with the records up to there.
struct Made {
    bytes: Vec<u8>,
    frames: Vec<(usize, usize)>,
    header: usize,
}

impl Written {
    fn make(&self, keys: Option<&dyn Keys>) -> Made {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(Settings::default(), Id([3; 16]), 17, keys, &mut bytes).unwrap();
        let (header, mut frames) = (bytes.len(), Vec::new());
        for (number, (record, time, status)) in self.records.iter().enumerate() {
            writer.push(record, &Facts { time: *time, status: *status, terms: &[number as u64] }).unwrap();
            if self.ends.contains(&number) || number + 1 == self.records.len() {
                let frame = writer.frame(&mut bytes).unwrap().unwrap();
                writer.written(frame);
                assert_eq!(writer.position(), bytes.len() as u64);
                frames.push((bytes.len(), number + 1));
            }
        }
        let most = writer.end_length();
        writer.finish(&mut bytes);
        let end = frames.last().map_or(header, |frame| frame.0);
        assert!((bytes.len() - end) as u64 <= most);
        Made { bytes, frames, header }
    }

    fn lines(&self) -> Vec<Vec<u8>> {
        self.records.iter().map(|(record, ..)| record.clone()).collect()
    }
}

/// All records that can be read, and whether any damage is told of.
fn read(bytes: &[u8], keys: Option<&dyn Keys>) -> Result<(Vec<Vec<u8>>, bool), Error> {
    let segment = Segment::open(bytes, keys)?;
    let (mut records, mut damaged) = (Vec::new(), !segment.damage().is_empty());
    for frame in segment.frames() {
        match frame.unwrap() {
            Ok(frame) => records.extend(frame.records().map(<[u8]>::to_vec)),
            Err(_) => damaged = true,
        }
    }
    Ok((records, damaged))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_however_it_is_split(what in written(), encrypted: bool) {
        let key = key();
        let keys: Option<&dyn Keys> = if encrypted { Some(&key) } else { None };
        let made = what.make(keys);
        prop_assert_eq!(read(&made.bytes, keys).unwrap(), (what.lines(), false));
        let segment = Segment::open(&made.bytes[..], keys).unwrap();
        let footer = segment.footer().unwrap();
        prop_assert_eq!((footer.records, footer.frames as usize), (what.records.len() as u64, made.frames.len()));
        let times: Vec<i64> = what.records.iter().map(|(_, time, _)| *time).collect();
        let (first, last) = (times.iter().min().copied().unwrap_or(0), times.iter().max().copied().unwrap_or(0));
        prop_assert_eq!((footer.first, footer.last), (first, last));
        // Without its end it is found to be the same, and gets the same end.
        let end = usize::try_from(segment.end()).unwrap();
        let scanned = Segment::open(&made.bytes[..end], keys);
        if made.frames.is_empty() {
            prop_assert!(scanned.unwrap().entries().is_empty());
        } else {
            let scanned = scanned.unwrap();
            prop_assert_eq!(scanned.entries(), segment.entries());
            prop_assert_eq!(&scanned.end_bytes(), &made.bytes[end..]);
        }
        // A tool that knows zstd alone.
        let mut plain = Vec::new();
        zstd::Decoder::new(&made.bytes[..]).unwrap().read_to_end(&mut plain).unwrap();
        let lines: Vec<u8> = what.lines().iter().flat_map(|line| [&line[..], b"\n"].concat()).collect();
        prop_assert_eq!(plain, if encrypted { Vec::new() } else { lines });
    }

    #[test]
    fn a_cut_leaves_the_whole_frames_before_it(what in written(), encrypted: bool) {
        let key = key();
        let keys: Option<&dyn Keys> = if encrypted { Some(&key) } else { None };
        let made = what.make(keys);
        for cut in 0..made.bytes.len() {
            let whole = made.frames.iter().rev().find(|(end, _)| *end <= cut).map_or(0, |(_, records)| *records);
            match read(&made.bytes[..cut], keys) {
                Ok((records, _)) => prop_assert_eq!(&records[..], &what.lines()[..whole], "cut at {}", cut),
                Err(error) => prop_assert!(matches!(error, Error::NotASegment) && cut < made.header, "cut at {}: {}", cut, error),
            }
            if made.frames.iter().all(|(end, _)| *end != cut) && cut > made.header {
                prop_assert!(read(&made.bytes[..cut], keys).unwrap().1, "cut at {}, and nothing is told of it", cut);
            }
        }
    }

    #[test]
    fn a_flipped_bit_never_gives_a_wrong_record(what in written(), encrypted: bool, bit in 0..8_u32) {
        let key = key();
        let keys: Option<&dyn Keys> = if encrypted { Some(&key) } else { None };
        let made = what.make(keys);
        let mut bytes = made.bytes.clone();
        for at in 0..bytes.len() {
            bytes[at] ^= 1 << bit;
            match read(&bytes, keys) {
                Ok((records, damaged)) => {
                    // All frames but the one that it is in.
                    let mut start = 0;
                    let mut begins = made.header;
                    let mut expected = Vec::new();
                    for (end, until) in &made.frames {
                        if !(begins..*end).contains(&at) {
                            expected.extend_from_slice(&what.lines()[start..*until]);
                        }
                        (start, begins) = (*until, *end);
                    }
                    let all = what.lines();
                    let locked = encrypted && at < made.header;
                    // A head stands twice in the file: in its frame, and in the index.
                    prop_assert!(records == expected || records == all || (locked && records.is_empty()), "bit {} of {}", bit, at);
                    prop_assert!(damaged || records == all, "bit {} of {}: nothing is told of it", bit, at);
                }
                Err(error) => prop_assert!(matches!(error, Error::NotASegment | Error::Newer { .. }) && at < made.header, "{}", error),
            }
            bytes[at] ^= 1 << bit;
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(start in prop::collection::vec(any::<u8>(), 0..300), what in written()) {
        let _ = read(&start, None);
        // In front of a segment, and behind it.
        let made = what.make(None);
        let (before, behind) = ([&start[..], &made.bytes].concat(), [&made.bytes[..], &start].concat());
        for bytes in [before, behind] {
            if let Ok((records, _)) = read(&bytes, None) {
                prop_assert_eq!(records, what.lines());
            }
        }
    }
}

fn two_frames() -> (Vec<u8>, Segment<Vec<u8>>) {
    let records = vec![(b"{\"a\":1}".to_vec(), 10, 200), (b"{\"a\":2}".to_vec(), 20, 404), (b"{\"a\":3}".to_vec(), 30, 503)];
    let made = Written { records, ends: HashSet::from([1]) }.make(None);
    let segment = Segment::open(made.bytes.clone(), None).unwrap();
    (made.bytes, segment)
}

impl Source for Vec<u8> {
    fn length(&self) -> std::io::Result<u64> {
        (&self[..]).length()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        (&self[..]).read(offset, into)
    }
}

#[test]
fn query_leaves_out_frames_in_which_nothing_can_be() {
    let (_, segment) = two_frames();
    let found = |query: Query| segment.select(&query).map(|entry| entry.head.number).collect::<Vec<_>>();
    assert_eq!(found(Query::default()), [0, 1]);
    assert_eq!(found(Query { time: Some(0..=10), ..Query::default() }), [0]);
    assert_eq!(found(Query { time: Some(20..=30), ..Query::default() }), [0, 1]);
    assert_eq!(found(Query { time: Some(21..=29), ..Query::default() }), [0; 0]);
    assert_eq!(found(Query { status: Some(500..=599), ..Query::default() }), [1]);
    assert_eq!(found(Query { terms: vec![vec![2]], ..Query::default() }), [1]);
    assert_eq!(found(Query { terms: vec![vec![2, 0]], ..Query::default() }), [0, 1], "one or the other");
    assert_eq!(found(Query { terms: vec![vec![2], vec![0]], ..Query::default() }), [0; 0], "one and the other");
}

#[test]
fn frame_is_read_by_a_range_of_its_file() {
    let (bytes, segment) = two_frames();
    let footer = Footer::read(&bytes[bytes.len() - FOOTER_LENGTH..]).unwrap();
    let start = usize::try_from(footer.index_offset).unwrap();
    let index = Index::read(&bytes[start..][..footer.index_length as usize], &footer).unwrap();
    let (offset, head) = index.heads().last().unwrap();
    assert_eq!((offset, head), (segment.entries()[1].offset, &segment.entries()[1].head));
    let data = segment.entries()[1].data();
    let data = bytes[usize::try_from(data.start).unwrap()..usize::try_from(data.end).unwrap()].to_vec();
    assert_eq!(decode(head, data, None).unwrap().records().collect::<Vec<_>>(), [b"{\"a\":3}"]);
}

#[test]
fn damage_is_told_with_its_place_and_the_rest_is_read() {
    let (mut bytes, segment) = two_frames();
    let (first, end) = (segment.entries()[0].clone(), usize::try_from(segment.end()).unwrap());
    let inside = usize::try_from(first.data().start).unwrap() + 3;
    bytes[inside] ^= 1;
    let expected = Damage { offset: first.offset, bytes: first.length, frame: Some(0), flaw: Flaw::Data };
    let indexed = Segment::open(&bytes[..], None).unwrap();
    assert_eq!(indexed.read(&indexed.entries()[0]).unwrap().unwrap_err(), expected);
    let scanned = Segment::open(&bytes[..end], None).unwrap();
    assert_eq!(scanned.damage(), [expected]);
    assert_eq!(scanned.entries(), &segment.entries()[1..]);
    assert_eq!(expected.to_string(), format!("{} bytes at {}, frame 0: the frame is damaged", first.length, first.offset));
}

#[test]
fn encrypted_segment_shows_nothing_and_is_shredded_with_its_key() {
    let secret = b"{\"secret\":\"correct horse battery staple\"}".repeat(3);
    let records = vec![(secret.clone(), 10, 418)];
    let what = Written { records, ends: HashSet::new() };
    let made = what.make(Some(&key()));
    assert!(memchr::memmem::find(&made.bytes, b"horse").is_none());
    let other = LocalKey::new("key-1", &[8; 32]);
    assert!(matches!(read(&made.bytes, Some(&other)).unwrap_err(), Error::Key(_)));
    let without = Segment::open(&made.bytes[..], None).unwrap();
    let entry = &without.entries()[0];
    assert_eq!(without.read(entry).unwrap().unwrap_err().flaw, Flaw::Locked);
    assert_eq!((entry.head.records, entry.head.first), (1, 10), "it can still be counted and sorted");
    assert!(without.select(&Query { terms: vec![vec![77]], ..Query::default() }).next().is_some(), "what it holds is not told");
    let key = key();
    let with = Segment::open(&made.bytes[..], Some(&key)).unwrap();
    assert!(with.select(&Query { terms: vec![vec![77]], ..Query::default() }).next().is_none());
    assert!(with.select(&Query { status: Some(418..=418), terms: vec![vec![0]], ..Query::default() }).next().is_some());
    // The same text at the same place is another in each segment.
    assert_ne!(what.make(Some(&key)).bytes[made.header..], made.bytes[made.header..]);
}

#[test]
fn record_that_is_too_large_or_no_line_is_refused() {
    let mut out = Vec::new();
    let mut writer = Writer::new(Settings::default(), Id([0; 16]), 0, None, &mut out).unwrap();
    let facts = Facts::default();
    assert_eq!(writer.push(&vec![b'a'; MAX_RECORD + 1], &facts), Err(Refused::TooLarge(MAX_RECORD + 1)));
    assert_eq!(writer.push(b"a\nb", &facts), Err(Refused::NotALine));
    assert_eq!(writer.push(b"", &facts), Err(Refused::NotALine));
    assert_eq!(writer.gathered(), (0, 0));
    assert!(writer.frame(&mut out).unwrap().is_none());
    writer.push(&vec![b'a'; MAX_RECORD], &facts).unwrap();
    assert!(writer.is_full());
}

/// A head and data as somebody evil would make them.
fn evil(raw: u32, records: u32, data: &[u8]) -> (Head, Vec<u8>) {
    let (_, segment) = two_frames();
    let checksum = XxHash3_64::oneshot(data);
    let stored = u32::try_from(data.len()).unwrap();
    let head = Head { raw, records, stored, checksum, ..segment.entries()[0].head.clone() };
    let mut bytes = Vec::new();
    head.write(&mut bytes);
    (head, bytes)
}

#[test]
fn bomb_gets_no_more_memory_than_it_says_and_no_more_than_is_allowed() {
    let lines = [b"a\n".repeat(MAX_FRAME), b"a\n".to_vec()].concat();
    let bomb = zstd::bulk::compress(&lines, 3).unwrap();
    assert!(bomb.len() < lines.len() / 1000);
    let (head, bytes) = evil(u32::try_from(lines.len()).unwrap(), 1, &bomb);
    assert!(Head::read(&bytes).is_none(), "more than a frame may hold");
    assert_eq!(decode(&head, bomb.clone(), None).unwrap_err(), Flaw::Content);
    let (head, bytes) = evil(100, 50, &bomb);
    assert_eq!(Head::read(&bytes).unwrap().0, head);
    assert_eq!(decode(&head, bomb, None).unwrap_err(), Flaw::Content);
    // Two frames of zstd, where one is said to be.
    let two = [zstd::bulk::compress(b"a\n", 3).unwrap(), zstd::bulk::compress(b"a\n", 3).unwrap()].concat();
    assert_eq!(decode(&evil(4, 2, &two).0, two, None).unwrap_err(), Flaw::Content);
    for (raw, records, text) in
        [(4, 2, &b"a\n\n\n"[..]), (4, 1, b"aaaa"), (4, 2, b"aaa\n"), (3, 1, b"aaa\n"), (5, 1, b"aaa\n"), (3, 1, b"\na\n")]
    {
        let data = zstd::bulk::compress(text, 3).unwrap();
        assert_eq!(decode(&evil(raw, records, &data).0, data, None).unwrap_err(), Flaw::Content, "{text:?}");
    }
}

#[test]
fn record_that_looks_like_a_frame_is_not_taken_for_one() {
    let forged = two_frames().0;
    let forged: Vec<u8> = forged.into_iter().filter(|byte| *byte != b'\n').collect();
    // Incompressible around it, so that it stands in the file as it is.
    let noise = (0..60_000_u64).map(|number| XxHash3_64::oneshot(&number.to_le_bytes()).to_le_bytes()[0]);
    let noise: Vec<u8> = noise.filter(|byte| *byte != b'\n').collect();
    let mut bytes = Vec::new();
    let mut writer = Writer::new(Settings::default(), Id([77; 16]), 0, None, &mut bytes).unwrap();
    writer.push(&[&noise[..], &forged, &noise].concat(), &Facts::default()).unwrap();
    let header = bytes.len();
    let _ = writer.frame(&mut bytes).unwrap();
    let id = memchr::memmem::find(&bytes[header + 300..], b"FXSF");
    assert!(id.is_some(), "it stands there");
    // Its own head is gone.
    bytes[header + PREFIX + 4] ^= 255;
    let (records, damaged) = read(&bytes, None).unwrap();
    assert_eq!((records.len(), damaged), (0, true));
}

#[test]
fn newer_version_is_said_to_be_one_and_additions_are_passed_over() {
    let mut newer = Vec::new();
    Header { version: 9, compatible: 2, ..Header::new(Id([1; 16]), 0, None) }.write(&mut newer);
    let error = read(&newer, None).unwrap_err();
    assert_eq!(error.to_string(), "the segment has version 9, which takes a reader of version 2; this one has 1");
    newer.clear();
    let header = Header { version: 9, ..Header::new(Id([1; 16]), 0, None) };
    header.write(&mut newer);
    assert_eq!(Segment::open(&newer[..], None).unwrap().header(), Some(&header));
    let (_, segment) = two_frames();
    let head = Head { more: b"more".to_vec(), ..segment.entries()[0].head.clone() };
    let mut bytes = Vec::new();
    head.write(&mut bytes);
    assert_eq!(Head::read(&bytes).unwrap(), (head, bytes.len()));
}

#[test]
fn frame_that_could_not_be_written_is_not_in_the_index() {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(Settings::default(), Id([1; 16]), 0, None, &mut bytes).unwrap();
    for number in 0..3 {
        writer.push(format!("{number}").as_bytes(), &Facts::default()).unwrap();
        let mut frame = Vec::new();
        let pending = writer.frame(&mut frame).unwrap().unwrap();
        if number != 1 {
            bytes.extend(frame);
            writer.written(pending);
        }
    }
    writer.finish(&mut bytes);
    assert_eq!(read(&bytes, None).unwrap(), (vec![b"0".to_vec(), b"2".to_vec()], false));
    let segment = Segment::open(&bytes[..], None).unwrap();
    assert_eq!(segment.entries().iter().map(|entry| entry.head.number).collect::<Vec<_>>(), [0, 2]);
    let end = usize::try_from(segment.end()).unwrap();
    assert_eq!(read(&bytes[..end], None).unwrap(), (vec![b"0".to_vec(), b"2".to_vec()], false));
}
