//! Where secrets stand, and what is left there.

#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use redact::{Action, Body, Detector, Key, Reason, Redacted, Redactor, Rule, Rules, RulesError, Tally, What};

fn standard() -> Redactor {
    Redactor::new(&Rules::standard(), &Key::new(&[1; 32])).unwrap()
}

fn one(what: What, action: Action) -> Redactor {
    let rules = vec![Rule { name: "rule".to_owned(), what, action }];
    Redactor::new(&Rules { rules, ..Rules::default() }, &Key::new(&[1; 32])).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn header(redactor: &Redactor, name: &str, value: &str) -> Option<String> {
    redactor.header(name.as_bytes(), value.as_bytes(), &mut Tally::default()).map(|left| text(&left))
}

fn body(redactor: &Redactor, media_type: &str, bytes: &str, cut: bool) -> Result<String, Reason> {
    let body = Body { bytes: bytes.as_bytes(), media_type: Some(media_type.as_bytes()), coding: None, cut };
    match redactor.body(&body, &mut Tally::default()) {
        Redacted::Kept(kept) => Ok(text(&kept)),
        Redacted::Dropped(reason) => Err(reason),
    }
}

#[test]
fn header_fields_of_credentials_are_dropped() {
    for name in ["Authorization", "PROXY-AUTHORIZATION", "x-api-key", "X-Auth-Token", "x_api_key"] {
        assert_eq!(header(&standard(), name, "s3cret"), None, "{name}");
    }
    assert_eq!(header(&standard(), "accept", "text/html").unwrap(), "text/html");
}

#[test]
fn cookies_lose_their_values_and_keep_their_attributes() {
    for (name, before, after) in [
        ("Cookie", "a=1; b=\"2;3\" ;c", "a=; b=;;"),
        ("cookie", "sid=x=y; empty=", "sid=; empty="),
        (
            "Set-Cookie",
            "sid=x; Path=/; HttpOnly; Expires=Wed, 21 Oct 2026 07:28:00 GMT",
            "sid=; Path=/; HttpOnly; Expires=Wed, 21 Oct 2026 07:28:00 GMT",
        ),
        ("set-cookie", "a=1; Path=/, b=2; Secure", "a=; Path=; Secure"),
        ("set-cookie", "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT, b=2; Secure", "a=; Expires=; Secure"),
    ] {
        assert_eq!(header(&standard(), name, before).unwrap(), after);
    }
    let redactor = one(What::Cookie("sid".to_owned()), Action::Mask);
    assert_eq!(header(&redactor, "cookie", "theme=dark; SID=x").unwrap(), "theme=dark; SID=***");
}

#[test]
fn urls_lose_parameters_and_user_information() {
    for (before, after) in [
        ("/a?access_token=x&b=1", "/a?access_token=&b=1"),
        ("/a?b=1&ACCESS%5FTOKEN=x#c", "/a?b=1&ACCESS%5FTOKEN=#c"),
        ("/a?b=1;token=x&c=2", "/a?b=1;token=&c=2"),
        ("/cb#id_token=x&state=1", "/cb#id_token=&state=1"),
        ("/a?b=1#c?token=x", "/a?b=1#c?token="),
        ("https://user:pass@host/a?X-Amz-Signature=x", "https://@host/a?X-Amz-Signature="),
        ("/go?to=https%3A%2F%2Fh%2F%3Fpassword%3Dx%26b%3D1", "/go?to=https%3A%2F%2Fh%2F%3Fpassword%3D%26b%3D1"),
        ("/go?to=https%253A%252F%252Fh%253Fpassword%253Dx", "/go?to=https%253A%252F%252Fh%253Fpassword%253D"),
        ("/a?user%5Bpassword%5D=x", "/a?user%5Bpassword%5D="),
        ("/a?b=%zz&c", "/a?b=%zz&c"),
        ("/tokens?page=1", "/tokens?page=1"),
    ] {
        assert_eq!(text(&standard().url(before.as_bytes(), &mut Tally::default())), after);
        assert_eq!(header(&standard(), ":path", before).unwrap(), after);
    }
    assert_eq!(header(&standard(), "location", "https://u:p@h/?a=1&token=x").unwrap(), "https://@h/?a=1&token=");
}

#[test]
fn forms_lose_fields() {
    let redactor = standard();
    let form = "application/x-www-form-urlencoded";
    assert_eq!(body(&redactor, form, "user=a&pass%77ord=b%26c&x=1", false).unwrap(), "user=a&pass%77ord=&x=1");
    assert_eq!(body(&redactor, form, "user=a&password=b&x=1", true).unwrap(), "user=a&password=&");
    assert_eq!(body(&redactor, form, "user=a", true).unwrap(), "");
}

#[test]
fn forms_in_parts_lose_fields() {
    let redactor = standard();
    let form = "multipart/form-data; boundary=\"--x\"";
    let part = |name: &str, content: &str| format!("----x\r\nContent-Disposition: form-data; name={name}\r\n\r\n{content}\r\n");
    let before =
        [part("\"user\"", "a"), part("\"password\"", "b\r\nc"), part("\"m\"; filename=\"token=1\"", "{\"token\":\"x\"}")]
            .concat();
    let after =
        [part("\"user\"", "a"), part("\"password\"", ""), part("\"m\"; filename=\"token=\"", "{\"token\":null}")].concat();
    assert_eq!(body(&redactor, form, &format!("{before}----x--\r\nafter"), false).unwrap(), format!("{after}----x--\r\n"));
    assert_eq!(body(&redactor, form, &before, false), Err(Reason::Multipart));
    assert_eq!(body(&redactor, "multipart/form-data", &before, false), Err(Reason::Multipart));
    for end in 0..before.len() {
        let kept = body(&redactor, form, &before[..end], true).unwrap();
        assert!(!kept.contains("b\r\nc") && !kept.contains(":\"x"), "{kept}");
    }
    for name in ["password", "Password; x=y", "\"user[password]\"", "x; name*=utf-8''pass%77ord"] {
        let kept = body(&redactor, form, &format!("{}----x--", part(name, "s3cret")), false).unwrap();
        assert!(!kept.contains("s3cret"), "{kept}");
    }
}

#[test]
fn parts_cannot_be_told_otherwise() {
    let folded = "--b\r\nContent-Disposition: form-data;\r\n\tname=password\r\n\r\ns3cret\r\n--b--";
    let begun = "--b\r\nContent-Disposition: form-data; name=password\r\n\r\n1\r\n--bc\r\nx: y\r\n\r\ns3cret\r\n--b--";
    for form in [folded, begun] {
        let kept = body(&standard(), "multipart/form-data; boundary=b", form, false).unwrap();
        assert!(kept.contains("password") && !kept.contains("s3cret"), "{kept}");
    }
}

#[test]
fn detectors_alone_read_json_too() {
    let redactor = one(What::Detector(Detector::Email), Action::Mask);
    let before = "{\"m\":\"ann\\u0040shop.example\",\"n\":\"ann\\u0040sh";
    assert_eq!(body(&redactor, "application/json", before, true).unwrap(), "{\"m\":\"***\",\"n\":");
    assert_eq!(body(&redactor, "application/json", "{m: ann@shop.example}", false).unwrap(), "{m: ***}");
}

#[test]
fn texts_lose_what_a_regex_finds() {
    let redactor = one(What::Regex("order ([0-9]+)".to_owned()), Action::Mask);
    assert_eq!(body(&redactor, "text/plain", "order 12, order 3", false).unwrap(), "order ***, order ***");
    assert_eq!(body(&redactor, "application/json", "{\"a\":\"order 12\"}", false).unwrap(), "{\"a\":\"order ***\"}");
    for wrong in ["(", "", "a*", "a{1000}{1000}", &"a".repeat(1025)] {
        let rules = Rules {
            rules: vec![Rule { name: "r".to_owned(), what: What::Regex(wrong.to_owned()), action: Action::Drop }],
            ..Rules::default()
        };
        assert_eq!(
            Redactor::new(&rules, &Key::new(&[1; 32])).unwrap_err(),
            RulesError::Regex { rule: "r".to_owned() },
            "{wrong}"
        );
    }
}

#[test]
fn the_same_value_has_one_pseudonym_in_all_places() {
    let redactor = one(What::Detector(Detector::Email), Action::Pseudonym);
    let address = ["ann", "@shop.example"].concat();
    let name = header(&redactor, "x-user", &address).unwrap();
    assert!(name.starts_with("p-") && name.len() == 26, "{name}");
    assert_eq!(text(&redactor.url(b"/a?m=ann%40shop.example", &mut Tally::default())), format!("/a?m={name}"));
    assert_eq!(
        body(&redactor, "application/json", "{\"m\":\"\\u0061nn@shop.example\"}", false).unwrap(),
        format!("{{\"m\":\"{name}\"}}")
    );
    assert_ne!(header(&redactor.with_key(&Key::new(&[2; 32])), "x-user", &address).unwrap(), name);
}

#[test]
fn of_two_rules_the_first_decides() {
    let mut rules = Rules::standard();
    rules.rules.insert(0, Rule { name: "session".to_owned(), what: What::Cookie("sid".to_owned()), action: Action::Pseudonym });
    let redactor = Redactor::new(&rules, &Key::new(&[1; 32])).unwrap();
    let mut tally = Tally::default();
    let left = text(&redactor.header(b"cookie", b"sid=a; b=c", &mut tally).unwrap());
    assert!(left.starts_with("sid=p-") && left.ends_with("; b="), "{left}");
    assert_eq!(redactor.counts(&tally), [("session", 1), ("cookies", 1)]);
    assert_eq!(tally.total(), 2);
}

#[test]
fn what_cannot_be_read_is_dropped() {
    let redactor = standard();
    assert_eq!(body(&redactor, "application/problem+json", "{", false), Err(Reason::NotJson));
    assert_eq!(body(&redactor, "", "{\"password\": \"x\"", false), Err(Reason::NotJson));
    assert_eq!(body(&redactor, "text/plain; charset=utf-16", "a", false), Err(Reason::Charset));
    let detecting = Redactor::new(&Rules::standard().with_detectors(Action::Mask), &Key::new(&[1; 32])).unwrap();
    assert_eq!(body(&detecting, "application/grpc", "\0\u{1}ann@shop.example", false), Err(Reason::Binary));
    assert_eq!(body(&detecting, "application/grpc", "\0\u{1}ann", false).unwrap(), "\0\u{1}ann");
}

#[test]
fn the_end_of_a_text_that_is_cut_goes() {
    let redactor = Redactor::new(&Rules::standard().with_detectors(Action::Mask), &Key::new(&[1; 32])).unwrap();
    assert_eq!(body(&redactor, "text/plain", "hello ann@shop.exa", true).unwrap(), "hello");
    assert_eq!(body(&redactor, "text/plain", "pay with 4111 1111 1111 11", true).unwrap(), "pay with");
    assert_eq!(body(&redactor, "text/plain", "eyJhbGci", true).unwrap(), "");
}

#[test]
fn neither_errors_nor_debug_output_tell_what_was_found() {
    let redactor = standard();
    let bytes = b"{\"password\":\"s3cret\"";
    let body = Body { bytes, media_type: Some(b"application/json"), coding: None, cut: false };
    let mut tally = Tally::default();
    let dropped = redactor.body(&body, &mut tally);
    let kept = redactor.body(&Body { cut: true, ..body }, &mut tally);
    assert!(!format!("{redactor:?} {body:?} {dropped:?} {kept:?} {tally:?}").contains("s3cret"));
}
