//! Validation by clients that lie about what they have, and origins that answer oddly.

use super::{ALL, Site, ok};
use crate::support::field;

/// An origin of version 2, that knows version 1 no more; whether its 304 names the tag.
async fn renewed(tagged: bool) -> Site {
    Site::start(ALL, move |head, number| {
        let version = if number == 1 { 1 } else { 2 };
        let matches = field(head, "if-none-match").is_some_and(|tags| tags.contains(&format!("\"v{version}\"")));
        let tag = if tagged { format!("etag: \"v{version}\"\r\n") } else { String::new() };
        if matches {
            format!("HTTP/1.1 304 Not Modified\r\n{tag}cache-control: max-age=600\r\n\r\n")
        } else {
            let control = if version == 1 { "max-age=0" } else { "max-age=600" };
            ok(&format!("cache-control: {control}\r\netag: \"v{version}\"\r\n"), &format!("version {version}"))
        }
    })
    .await
}

#[tokio::test]
async fn client_with_another_version_keeps_no_old_answer_alive() {
    for tagged in [true, false] {
        for tags in ["\"v2\"", "\"v1\", \"v2\"", "W/\"v2\"", "\"x\", W/\"v2\""] {
            let site = renewed(tagged).await;
            assert_eq!(site.get("/", "").await.text(), "version 1");
            let own = site.get("/", &format!("if-none-match: {tags}\r\n")).await;
            assert_eq!((own.status, own.field("etag")), (304, "\"v2\""), "{tags}");
            let other = site.get("/", "").await;
            assert_eq!((other.text(), other.field("etag")), ("version 2", "\"v2\""), "{tags}, tagged: {tagged}");
        }
    }
}

#[tokio::test]
async fn not_modified_without_need_stores_nothing_and_gives_no_empty_answer() {
    // An origin that answers 304 to everybody the second time.
    let site = Site::start(ALL, |_, number| match number {
        2 => "HTTP/1.1 304 Not Modified\r\ncache-control: max-age=600\r\n\r\n".to_owned(),
        _ => ok("cache-control: no-store\r\n", &number.to_string()),
    })
    .await;
    assert_eq!(site.get("/", "").await.text(), "1");
    assert_eq!(site.get("/", "").await.status, 304, "what the origin says to this one");
    assert_eq!(site.get("/", "").await.text(), "3", "is nothing to the next");
    assert_eq!(site.proxy.metric("fetchr_cache_objects"), 0.0);
}

#[tokio::test]
async fn conditions_of_one_client_decide_nothing_for_others() {
    for fields in [
        "if-none-match: *\r\n",
        "if-none-match: \"v1\"\r\n",
        "if-modified-since: Fri, 01 Jan 2100 00:00:00 GMT\r\n",
        "if-match: \"other\"\r\n",
        "if-unmodified-since: Thu, 01 Jan 1970 00:00:00 GMT\r\n",
        "if-range: \"v1\"\r\nrange: bytes=0-0\r\n",
        "range: bytes=0-3\r\n",
        "range: bytes=99-\r\n",
        "range: bytes=0-0,2-2,4-4\r\n",
        "range: bytes=\r\n",
    ] {
        // An origin that does as it is told.
        let site = Site::start(ALL, |head, _| {
            let head = head.to_ascii_lowercase();
            let kept = "cache-control: max-age=600\r\netag: \"v1\"\r\n";
            if head.contains("if-match") || head.contains("if-unmodified") {
                format!("HTTP/1.1 412 Precondition Failed\r\n{kept}content-length: 0\r\n\r\n")
            } else if head.contains("if-none-match") || head.contains("if-modified-since") {
                format!("HTTP/1.1 304 Not Modified\r\n{kept}\r\n")
            } else if head.contains("range: bytes=99-") {
                format!("HTTP/1.1 416 Range Not Satisfiable\r\n{kept}content-range: bytes */9\r\ncontent-length: 0\r\n\r\n")
            } else if head.contains("range: ") {
                format!("HTTP/1.1 206 Partial Content\r\n{kept}content-range: bytes 0-3/9\r\ncontent-length: 4\r\n\r\nwhol")
            } else {
                ok(kept, "whole one")
            }
        })
        .await;
        for _ in 0..2 {
            assert!(site.get("/", fields).await.status >= 200);
            let other = site.get("/", "").await;
            assert_eq!((other.status, other.text()), (200, "whole one"), "{fields}");
        }
    }
}

#[tokio::test]
async fn part_that_nobody_asked_for_is_not_kept_nor_shared() {
    let site = Site::start(ALL, |_, number| match number {
        1 => "HTTP/1.1 206 Partial Content\r\ncache-control: max-age=600\r\netag: \"1\"\r\ncontent-range: bytes 0-3/9\r\ncontent-length: 4\r\n\r\nwhol"
            .to_owned(),
        _ => ok("cache-control: max-age=600\r\n", "whole one"),
    })
    .await;
    assert_eq!(site.get("/", "").await.status, 206);
    for _ in 0..2 {
        assert_eq!(site.get("/", "").await.text(), "whole one");
    }
    assert_eq!(site.requests(), 2);
}
