//! Answers that are made of what is stored.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use smallvec::SmallVec;

use super::{
    semantics::{
        conditional::{self, Answer},
        meta::{Flags, Meta},
        parts::Content,
        range::{self, ByteRange},
        request::{Asks, Kind},
        serve::Decision,
        validators::Validators,
    },
    store::Object,
};
use crate::flow::{Flow, Pieces};

/// What a request gets of what is stored, before its age is told.
pub(super) struct Plan {
    object: Object,
    headers: HeaderMap,
    content: Content,
    answer: Answer,
}

impl Plan {
    /// None if parts alone are stored, and lack what the request asks for.
    pub(super) fn of(object: &Object, meta: &Meta, asks: &Asks, request: &HeaderMap) -> Option<Self> {
        let mut headers = object.headers(6);
        let partial = meta.flags.any(Flags::PARTIAL);
        let content = if partial { pieces(object, &mut headers)? } else { Content::whole(object.body_len()) };
        let answer = conditional::answer(asks, request, meta, &Validators::of(&headers), Some(content.complete));
        // The length of the whole is known, and that is all that HEAD wants.
        let enough = !partial || asks.kind == Kind::Head || content.pieces.serve(&answer, content.complete);
        enough.then(|| Self { object: object.clone(), headers, content, answer })
    }

    /// The answer.
    pub(super) fn response(self, decision: &Decision, asks: &Asks) -> Box<Response<Flow>> {
        let Self { object, mut headers, content, answer } = self;
        let mut length = None;
        let (status, pieces) = match answer {
            Answer::Whole => {
                length = Some(content.complete);
                let partial = object.status() == StatusCode::PARTIAL_CONTENT;
                (if partial { StatusCode::OK } else { object.status() }, object.body().collect())
            }
            Answer::NotModified => {
                let has_tag = Validators::of(&headers).etag.is_some();
                retain(&mut headers, |name| not_modified(name, has_tag));
                (StatusCode::NOT_MODIFIED, Pieces::new())
            }
            Answer::Parts(parts) => (StatusCode::PARTIAL_CONTENT, in_parts(&object, &content, &mut headers, &parts)),
            Answer::Unsatisfiable => {
                retain(&mut headers, |name| conditional::in_parts(name, true));
                set(&mut headers, header::CONTENT_RANGE, range::unsatisfied(content.complete));
                (StatusCode::RANGE_NOT_SATISFIABLE, Pieces::new())
            }
        };
        headers.insert(header::AGE, decision.age_field().into());
        finish(status, headers, pieces, length, asks)
    }
}

/// Which pieces are stored. None if that doesn't fit to the bytes.
fn pieces(object: &Object, headers: &mut HeaderMap) -> Option<Content> {
    let content = Content::of(headers).filter(|content| content.length() == object.body_len());
    headers.remove(header::CONTENT_RANGE);
    content
}

/// The head of an answer whose body is still on its way, and whether the client needs that body: none for HEAD, and for who has it.
pub(super) fn head_of(head: &Object, meta: &Meta, decision: &Decision, asks: &Asks, request: &HeaderMap) -> (Response<()>, bool) {
    let mut headers = head.headers(6);
    let validators = Validators::of(&headers);
    let modified = conditional::answer(asks, request, meta, &validators, None) != Answer::NotModified;
    let has_tag = validators.etag.is_some();
    let mut response = Response::new(());
    if modified {
        *response.status_mut() = head.status();
    } else {
        retain(&mut headers, |name| not_modified(name, has_tag));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    headers.insert(header::AGE, decision.age_field().into());
    *response.headers_mut() = headers;
    (response, modified && asks.kind == Kind::Get)
}

/// The answer where the client wants one from the store alone, and there is none (RFC 9111, section 5.2.1.7).
pub(super) fn none() -> Box<Response<Flow>> {
    let text = "fetchr: nothing is stored that may answer this, and the request has only-if-cached\n";
    let mut response = Response::new(Flow::bytes(text));
    *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Box::new(response)
}

/// `length`: of the whole, if that is asked for.
fn finish(status: StatusCode, mut headers: HeaderMap, pieces: Pieces, length: Option<u64>, asks: &Asks) -> Box<Response<Flow>> {
    let body = if asks.kind == Kind::Head && status != StatusCode::NOT_MODIFIED {
        headers.insert(header::CONTENT_LENGTH, length.unwrap_or(0).into());
        Flow::bytes("")
    } else {
        headers.remove(header::CONTENT_LENGTH); // the body tells its length
        Flow::pieces(pieces)
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Box::new(response)
}

/// The parts that are asked for, with the fields that say which they are.
fn in_parts(object: &Object, content: &Content, headers: &mut HeaderMap, parts: &[ByteRange]) -> Pieces {
    let complete = content.complete;
    let bytes = |range: &ByteRange| object.part(content.place(*range).unwrap_or_default());
    if let [one] = parts {
        retain(headers, |name| conditional::in_parts(name, false));
        set(headers, header::CONTENT_RANGE, one.content_range(complete));
        return bytes(one).collect();
    }
    let boundary = format!("{:032x}", fastrand::u128(..));
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes().to_vec());
    retain(headers, |name| conditional::in_parts(name, true));
    set(headers, header::CONTENT_TYPE, range::multipart_type(&boundary));
    let mut pieces = Pieces::new();
    for part in parts {
        pieces.push(range::part_head(&boundary, content_type.as_deref(), *part, complete).into());
        pieces.extend(bytes(part));
    }
    pieces.push(range::parts_end(&boundary).into());
    pieces
}

fn not_modified(name: &HeaderName, has_tag: bool) -> bool {
    let stored = Validators { etag: has_tag.then_some(&b"\"\""[..]), last_modified: None };
    conditional::in_not_modified(name, &stored)
}

fn retain(headers: &mut HeaderMap, keeps: impl Fn(&HeaderName) -> bool) {
    let gone: SmallVec<[HeaderName; 8]> = headers.keys().filter(|name| !keeps(name)).cloned().collect();
    for name in gone {
        headers.remove(name);
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}
