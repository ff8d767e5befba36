//! What fuzzing runs. Each function takes any bytes and asserts what must hold for them; it panics where it does not.
//!
//! This is here with the feature `fuzzing`, for the targets in `fuzz/`, and in tests, which replay the corpora.

mod hyper;

use bytes::BytesMut;
use crds::{
    plan::{AttachedPolicy, Attachment, Identity, ObjectRef, Plan},
    policy::{
        Direction, Match, PolicyRule,
        matches::{PathKind, PathMatch},
    },
    proxy::{DotSegments, EncodedSlashes, HttpPath, Slashes},
};
use http::{HeaderMap, HeaderValue, Method, header};

use crate::{
    cache::{
        file::{Damaged, Piece, Reader as FileReader, Writer as FileWriter},
        record::{self, Record},
        store::{Object, seal},
    },
    facts::Facts,
    fields::{self, Present},
    h1::{
        chunked::{Decoder, Found},
        encode,
        framing::{self, Framing},
        head::{self, BadHead, Reader},
    },
    h2::frames::Scanner,
    proxy_protocol,
    route::{Routes, Spelling},
    source::file::{self, Files},
    tls::hello::{self, Hello},
};

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// All of them, by the names of their corpora.
pub const TARGETS: [(&str, Target); 13] = [
    ("request_head", request_head),
    ("response_head", response_head),
    ("chunked", chunked),
    ("same_request", same_request),
    ("same_response", same_response),
    ("path", path),
    ("matcher", matcher),
    ("frames", frames),
    ("proxy_protocol", proxy_protocol),
    ("tls_hello", tls_hello),
    ("documents", documents),
    ("object", object),
    ("answers", answers),
];

/// A head of a request that is accepted is written anew in a way that reads the same.
pub fn request_head(input: &[u8]) {
    let Some(read) = read(input, |reader, buf| reader.request(buf)) else { return };
    assert!(read.headers.values().all(is_valid), "{:?}", read.headers);
    let mut out = Vec::new();
    encode::request(&mut out, &read.method, &read.uri, &read.headers);
    encode::framing(&mut out, Framing::Length(0), false);
    let again = Reader::default().request(&mut BytesMut::from(&out[..])).expect("what we write can be read");
    let again = again.expect("what we write is whole");
    let target = |uri: &http::Uri| uri.path_and_query().map(ToString::to_string);
    assert_eq!((&again.method, target(&again.uri)), (&read.method, target(&read.uri)));
    assert_eq!(again.headers, unframed(read.headers));
}

/// The same of a response.
pub fn response_head(input: &[u8]) {
    let Some(read) = read(input, |reader, buf| reader.response(buf)) else { return };
    assert!(read.headers.values().all(is_valid), "{:?}", read.headers);
    let mut out = Vec::new();
    encode::response(&mut out, read.status, &read.headers);
    encode::framing(&mut out, Framing::Length(0), false);
    let again = Reader::default().response(&mut BytesMut::from(&out[..])).expect("what we write can be read");
    let again = again.expect("what we write is whole");
    assert_eq!((again.status, again.headers), (read.status, unframed(read.headers)));
}

/// Reads a head, which reads the same however its bytes come.
fn read<T>(input: &[u8], read: impl Fn(&mut Reader, &mut BytesMut) -> Result<Option<T>, BadHead>) -> Option<T> {
    let mut buf = BytesMut::from(input);
    let whole = read(&mut Reader::default(), &mut buf);
    let (mut reader, mut growing) = (Reader::default(), BytesMut::new());
    let pieces = input.iter().find_map(|byte| {
        growing.extend_from_slice(&[*byte]);
        let read = read(&mut reader, &mut growing);
        (!matches!(read, Ok(None))).then_some(read.is_ok())
    });
    match &whole {
        Ok(None) => assert_eq!(pieces, None),
        // Byte by byte nothing is left behind a head.
        Ok(Some(_)) => assert_eq!((pieces, growing.len()), (Some(true), 0)),
        Err(_) => assert_eq!(pieces, Some(false)),
    }
    whole.ok()?
}

/// The reader makes values without having them checked again.
fn is_valid(value: &HeaderValue) -> bool {
    HeaderValue::from_bytes(value.as_bytes()).is_ok()
}

/// Without the fields that are written for each body anew.
fn unframed(mut headers: HeaderMap) -> HeaderMap {
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
    headers
}

/// The chunked coding reads the same however its bytes come.
pub fn chunked(input: &[u8]) {
    let Some((piece, text)) = input.split_first() else { return };
    let whole = decode(text, text.len().max(1));
    let pieces = decode(text, usize::from(*piece).max(1));
    assert_eq!(pieces, whole);
}

/// The body, its trailers, and how many bytes come after; none if it is broken, or not whole.
fn decode(text: &[u8], piece: usize) -> Option<(Vec<u8>, Option<HeaderMap>, usize)> {
    let (mut decoder, mut buf, mut body) = (Decoder::default(), BytesMut::new(), Vec::new());
    let mut pieces = text.chunks(piece);
    loop {
        match decoder.decode(&mut buf).ok()? {
            Found::Data(data) => body.extend_from_slice(&data),
            Found::End(trailers) => return Some((body, trailers, buf.len() + pieces.map(<[u8]>::len).sum::<usize>())),
            Found::More => buf.extend_from_slice(pieces.next()?),
        }
    }
}

/// A message as it was understood.
#[derive(Debug, Eq, PartialEq)]
struct Message {
    /// Method and target, or status.
    start: String,
    body: Vec<u8>,
}

/// Requests that we accept, hyper accepts with the same bodies, or not at all.
pub fn same_request(input: &[u8]) {
    let ours = requests(input);
    for (ours, theirs) in ours.iter().zip(hyper::requests(input)) {
        assert_eq!(*ours, theirs);
    }
}

fn requests(input: &[u8]) -> Vec<Message> {
    let mut buf = BytesMut::from(input);
    let mut requests = Vec::new();
    while head::skip_empty_lines(&mut buf)
        && let Ok(Some(read)) = Reader::default().request(&mut buf)
        && let Ok(framing) = framing::request(read.version, &read.headers)
        && let Some(body) = body(&mut buf, framing)
    {
        requests.push(Message { start: format!("{} {}", read.method, read.uri), body });
        let present = Present::of(&read.headers);
        let switches = read.method == Method::CONNECT || fields::upgrade(&read.headers, present).is_some();
        if switches || !fields::persists(read.version, &read.headers, present) {
            break;
        }
    }
    requests
}

/// An answer that we accept, hyper accepts with the same body, or not at all.
pub fn same_response(input: &[u8]) {
    if let (Some(ours), Some(theirs)) = (response(input), hyper::response(input)) {
        assert_eq!(ours, theirs);
    }
}

fn response(input: &[u8]) -> Option<Message> {
    let mut buf = BytesMut::from(input);
    loop {
        let read = Reader::default().response(&mut buf).ok()??;
        if read.status == http::StatusCode::SWITCHING_PROTOCOLS {
            return None;
        }
        if !read.status.is_informational() {
            let framing =
                framing::response(&Method::GET, read.status, read.version, &read.headers, Present::of(&read.headers)).ok()?;
            return Some(Message { start: read.status.as_str().to_owned(), body: body(&mut buf, framing)? });
        }
    }
}

/// Takes a whole body from the front.
fn body(buf: &mut BytesMut, framing: Framing) -> Option<Vec<u8>> {
    match framing {
        Framing::Length(len) => {
            let len = usize::try_from(len).ok().filter(|len| *len <= buf.len())?;
            Some(buf.split_to(len).to_vec())
        }
        Framing::Close => Some(buf.split().to_vec()),
        Framing::Chunked => {
            let (body, _, left) = decode(buf, buf.len().max(1))?;
            let _ = buf.split_to(buf.len() - left);
            Some(body)
        }
    }
}

/// A path has one spelling, which is spelled as itself, without dot segments and in the settings' terms.
pub fn path(input: &[u8]) {
    let Some((settings, path)) = input.split_first() else { return };
    let Ok(path) = str::from_utf8(path) else { return };
    let settings = HttpPath {
        forward: None,
        dot_segments: if settings & 1 == 0 { DotSegments::Resolve } else { DotSegments::Refuse },
        slashes: if settings & 2 == 0 { Slashes::Merge } else { Slashes::Keep },
        encoded_slashes: [EncodedSlashes::Keep, EncodedSlashes::Decode, EncodedSlashes::Refuse][usize::from(settings >> 2) % 3],
    };
    let spelling = Spelling::new(settings);
    let normal = spelling.normal(path).into_owned();
    assert_eq!(spelling.normal(&normal), normal);
    if !normal.starts_with('/') {
        return;
    }
    assert!(!normal.split('/').any(|segment| matches!(segment, "." | "..")), "{normal}");
    assert!(settings.slashes == Slashes::Keep || !normal.contains("//"), "{normal}");
    if spelling.check(path).is_ok() {
        assert!(!normal.contains("%00"), "{normal}");
        assert!(spelling.check(&normal).is_ok(), "{normal}");
    }
}

/// The index finds the rule that a comparison with each rule finds. Lines: a path, then patterns with their kind as the first letter.
pub fn matcher(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let mut lines = text.lines();
    let path = lines.next().unwrap_or_default();
    let rules: Vec<PolicyRule> = lines.take(8).enumerate().filter_map(|(at, line)| rule(at, line)).collect();
    let policy = AttachedPolicy {
        policy: ObjectRef::new("shop", "p"),
        attachment: Attachment::Proxy,
        direction: Direction::Inbound,
        rules: rules.into(),
    };
    let plan = Plan { policies: vec![policy], ..Plan::default() };
    let Ok(routes) = Routes::build(&plan, &Identity::default(), Direction::Inbound) else { return };
    let facts = Facts {
        method: &Method::GET,
        scheme: "http",
        host: "shop.example",
        path,
        query: None,
        headers: &HeaderMap::new(),
        client: [127, 0, 0, 1].into(),
    };
    let selected = routes.select(&facts).label();
    assert_eq!(*selected, *routes.explain(&facts).route.unwrap_or_default(), "{path:?}");
}

fn rule(at: usize, line: &str) -> Option<PolicyRule> {
    let kind = match line.as_bytes().first()? {
        b'e' => PathKind::Exact,
        b't' => PathKind::Template,
        b'r' => PathKind::Regex,
        _ => PathKind::Prefix,
    };
    let value = line.get(1..200.min(line.len()))?.to_owned();
    let one = Match { path: Some(PathMatch { kind, value }), ..Match::default() };
    Some(PolicyRule {
        name: format!("r{at}"),
        matches: vec![one],
        timeouts: Some(crds::policy::Timeouts::default()),
        ..PolicyRule::default()
    })
}

/// Frames are found at the same places however their bytes come.
pub fn frames(input: &[u8]) {
    let Some((piece, text)) = input.split_first() else { return };
    let found = |piece: usize| {
        let (mut scanner, mut found) = (Scanner::of_client(), Vec::new());
        for bytes in text.chunks(piece.max(1)) {
            scanner.pass(bytes, |frame| {
                found.push((frame.kind, frame.flags, frame.stream, frame.start.to_vec(), frame.is_empty_data()))
            });
        }
        (found, scanner.is_between_frames())
    };
    assert_eq!(found(usize::from(*piece)), found(text.len()));
}

/// A header of the PROXY protocol is told from its first bytes, and what follows it changes nothing.
pub fn proxy_protocol(input: &[u8]) {
    let whole = proxy_protocol::read(input);
    let first = (0..=input.len()).map(|len| proxy_protocol::read(&input[..len])).find(|read| *read != Ok(None));
    assert_eq!(first.unwrap_or(Ok(None)), whole);
    if let Ok(Some(header)) = whole {
        assert!(header.len <= input.len().min(proxy_protocol::MAX_HEADER));
    }
}

/// The host of a TLS client stays what it is when more bytes come. The first byte says where they are cut.
pub fn tls_hello(input: &[u8]) {
    let Some((cut, bytes)) = input.split_first() else { return };
    let (early, late) = (hello::read(&bytes[..bytes.len() * usize::from(*cut) / 256]), hello::read(bytes));
    assert!(early == Hello::Unfinished || early == late, "{early:?} {late:?}");
}

/// Documents are read and compiled, or refused with a reason.
pub fn documents(input: &[u8]) {
    let Ok(mut file) = tempfile::Builder::new().suffix(".yaml").tempfile() else { return };
    if std::io::Write::write_all(&mut file, input).is_err() {
        return;
    }
    let files = Files { paths: vec![file.path().to_owned()], proxy: None, identity: Identity::default() };
    if let Err(error) = file::load(&files, &|_| None) {
        assert!(!error.to_string().is_empty());
    }
}

/// What a tier beyond memory gives back is an object or an error, also when whoever wrote it made the checksum right.
pub fn object(input: &[u8]) {
    let mut sealed = input.to_vec();
    seal(&mut sealed);
    for bytes in [input, &sealed] {
        let Ok(object) = Object::decode(bytes) else { continue };
        assert_eq!(object.encode(), bytes, "what is read is written the same");
        assert_eq!(object.body().map(|piece| piece.len() as u64).sum::<u64>(), object.body_len());
        assert_eq!(object.headers(0).len(), object.fields().count());
        assert!(object.is_for(object.primary(), object.variant()));
        let _ = (object.meta(), object.status());
    }
}

/// A file of answers reads the same however its bytes come, and a record in it is an answer or an error, also when whoever wrote it made the
/// checksums right. The first byte says how it comes, the second what kind of record it is.
pub fn answers(input: &[u8]) {
    let Some(([piece, kind], bytes)) = input.split_first_chunk() else { return };
    let piece = usize::from(*piece).max(1);
    assert_eq!(pieces(bytes, piece), pieces(bytes, bytes.len().max(1)));
    let (record, mut whole) = (record::sealed(*kind, bytes), Vec::new());
    let mut file = FileWriter::begin(0, &mut whole);
    file.add_record(&record, &mut whole).expect("it is short");
    file.end(&mut whole);
    let read = pieces(&whole, piece).expect("what we write is whole");
    assert_eq!(read.len(), 3);
    assert_eq!(read[1], Piece::Record(record.clone().into()));
    if let Ok(Record::Answer(answer)) = record::read(&record, 1 << 16) {
        let again = record::read(&record::of_answer(&answer), 1 << 17).expect("what we write can be read");
        let Record::Answer(again) = again else { unreachable!("it is written as an answer") };
        assert_eq!(again.object.encode(), answer.object.encode());
        assert_eq!((again.meta, again.position, again.tags), (answer.meta, answer.position, answer.tags));
    }
}

fn pieces(bytes: &[u8], piece: usize) -> Result<Vec<Piece>, Damaged> {
    let (mut reader, mut pieces) = (FileReader::new(1 << 16), Vec::new());
    for bytes in bytes.chunks(piece) {
        reader.push(bytes);
        while let Some(piece) = reader.read()? {
            pieces.push(piece);
        }
    }
    reader.finish()?;
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// What fuzzing has found, and what it starts from.
    #[test]
    fn corpora_hold() {
        for (name, target) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
            let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
            assert!(!files.is_empty(), "{}", folder.display());
            for file in files {
                target(&fs::read(&file).unwrap());
            }
        }
    }

    #[test]
    fn both_readers_read_usual_messages() {
        let two = b"POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n";
        assert_eq!(requests(two).len(), 2);
        assert_eq!(requests(two), hyper::requests(two));
        let answer = b"HTTP/1.1 103 x\r\n\r\nHTTP/1.1 200 OK\r\n\r\nhi";
        assert_eq!(response(answer).unwrap().body, b"hi");
        assert_eq!(response(answer), hyper::response(answer));
    }
}
