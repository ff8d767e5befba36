//! Files to try a reader of segments with: `tests/segments`. They are made here, and are what they were, byte for byte.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic as tests do")]

use std::{fs, path::Path};

use archive::segment::{DataKey, Facts, Flaw, Id, KeyError, Keys, LocalKey, Segment, Settings, Writer, term};

/// The key of the user, its id, and the data key that it wraps.
const KEY: [u8; 32] = [0x11; 32];
const KEY_ID: &str = "example";
const DATA_KEY: [u8; 32] = [0x22; 32];

/// Wraps as a local key does, but always with the same nonce, so that the file is the same each time.
struct Fixed(LocalKey);

impl Keys for Fixed {
    fn id(&self) -> &str {
        self.0.id()
    }

    fn data_key(&self) -> Result<DataKey, KeyError> {
        Ok(DataKey::new(DATA_KEY))
    }

    fn wrap(&self, _: &Id, _: &DataKey) -> Result<Vec<u8>, KeyError> {
        let wrapped = fs::read(folder().join("wrapped-key")).map_err(|error| KeyError(error.to_string()))?;
        Ok(wrapped)
    }

    fn unwrap(&self, segment: &Id, key_id: &str, wrapped: &[u8]) -> Result<DataKey, KeyError> {
        self.0.unwrap(segment, key_id, wrapped)
    }
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/segments"))
}

const ID: Id = Id(*b"0123456789abcdef");

/// Record `n` of frame `f`: `{"frame":f,"record":n}`, at second `10 f + n`, with status `200 + 100 f`, found by `frame=f` and `record=n`.
fn make(keys: Option<&dyn Keys>, frames: u16) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = Writer::new(Settings::default(), ID, 1_790_000_000_000_000_000, keys, &mut out).unwrap();
    for frame in 0..frames {
        for record in 0..3 {
            let terms = [term("frame", &frame.to_string()), term("record", &record.to_string())];
            let facts = Facts { time: i64::from(10 * frame + record) * 1_000_000_000, status: 200 + 100 * frame, terms: &terms };
            writer.push(line(frame, record).as_bytes(), &facts).unwrap();
        }
        let frame = writer.frame(&mut out).unwrap().unwrap();
        writer.written(frame);
    }
    writer.finish(&mut out);
    out
}

fn line(frame: u16, record: u16) -> String {
    format!("{{\"frame\":{frame},\"record\":{record}}}")
}

/// One whose second frame has a wrong bit in its data.
fn damaged() -> Vec<u8> {
    let mut bytes = make(None, 3);
    let data = Segment::open(&bytes[..], None).unwrap().entries()[1].data();
    bytes[usize::try_from(data.start).unwrap() + 12] ^= 1;
    bytes
}

/// One that ends within its third frame.
fn torn() -> Vec<u8> {
    let mut bytes = make(None, 3);
    let data = Segment::open(&bytes[..], None).unwrap().entries()[2].data();
    bytes.truncate(usize::try_from(data.end).unwrap() - 5);
    bytes
}

fn key() -> Fixed {
    Fixed(LocalKey::new(KEY_ID, &KEY))
}

/// What the file of that name is, after it was compared with what is made now.
fn file(name: &str, made: &[u8]) -> Vec<u8> {
    let path = folder().join(name);
    let Ok(bytes) = fs::read(&path) else {
        fs::write(&path, made).unwrap();
        panic!("{} was missing, and is made: look at it and keep it", path.display());
    };
    assert!(bytes == made, "{}: the writer makes other bytes; a new version of zstd, or a change of the format?", path.display());
    bytes
}

fn read(bytes: &[u8], keys: Option<&dyn Keys>) -> (Vec<String>, Vec<Flaw>) {
    let segment = Segment::open(bytes, keys).unwrap();
    let mut flaws: Vec<Flaw> = segment.damage().iter().map(|damage| damage.flaw).collect();
    let mut records = Vec::new();
    for frame in segment.frames() {
        match frame.unwrap() {
            Ok(frame) => records.extend(frame.records().map(|record| String::from_utf8(record.to_vec()).unwrap())),
            Err(damage) => flaws.push(damage.flaw),
        }
    }
    (records, flaws)
}

fn lines(frames: &[u16]) -> Vec<String> {
    frames.iter().flat_map(|frame| (0..3).map(|record| line(*frame, record))).collect()
}

#[test]
fn files_are_what_they_were_and_give_the_records_they_should() {
    assert_eq!(read(&file("plain.fxs", &make(None, 3)), None), (lines(&[0, 1, 2]), vec![]));
    assert_eq!(read(&file("empty.fxs", &make(None, 0)), None), (vec![], vec![]));
    assert_eq!(read(&file("damaged.fxs", &damaged()), None), (lines(&[0, 2]), vec![Flaw::Data]));
    assert_eq!(read(&file("torn.fxs", &torn()), None), (lines(&[0, 1]), vec![Flaw::Torn]));
}

#[test]
fn encrypted_file_is_what_it_was_and_takes_the_key() {
    let path = folder().join("wrapped-key");
    if !path.exists() {
        fs::write(&path, key().0.wrap(&ID, &DataKey::new(DATA_KEY)).unwrap()).unwrap();
    }
    let key = key();
    let bytes = file("encrypted.fxs", &make(Some(&key), 3));
    assert_eq!(read(&bytes, Some(&key)), (lines(&[0, 1, 2]), vec![]));
    assert_eq!(read(&bytes, None), (vec![], vec![Flaw::Locked; 3]));
}
