use proptest::prelude::*;

use crate::{Action, Body, Key, Reason, Redacted, Redactor, Rule, Rules, Tally, What};

fn redactor(rules: &[(What, Action)]) -> Redactor {
    let rules =
        rules.iter().map(|(what, action)| Rule { name: "rule".to_owned(), what: what.clone(), action: *action }).collect();
    Redactor::new(&Rules { rules, ..Rules::default() }, &Key::new(&[1; 32])).unwrap()
}

fn at(path: &str) -> Redactor {
    redactor(&[(What::Json(path.to_owned()), Action::Mask)])
}

fn field(name: &str) -> Redactor {
    redactor(&[(What::Field(name.to_owned()), Action::Drop)])
}

fn body(redactor: &Redactor, text: &str, cut: bool) -> Result<String, Reason> {
    let body = Body { bytes: text.as_bytes(), media_type: Some(b"application/json"), coding: None, cut };
    match redactor.body(&body, &mut Tally::default()) {
        Redacted::Kept(kept) => Ok(String::from_utf8(kept.into_owned()).unwrap()),
        Redacted::Dropped(reason) => Err(reason),
    }
}

#[test]
fn paths_find_what_they_say() {
    for (path, before, after) in [
        ("$.a", r#"{"a":1,"b":{"a":2}}"#, r#"{"a":"***","b":{"a":2}}"#),
        ("$..a", r#"{"a":1,"b":[{"a":{"x":[1]}}]}"#, r#"{"a":"***","b":[{"a":"***"}]}"#),
        ("$.a.b[*].c", r#"{"a":{"b":[{"c":1},{"c":"x","d":1}]},"c":1}"#, r#"{"a":{"b":[{"c":"***"},{"c":"***","d":1}]},"c":1}"#),
        ("$[1]", r#"[1,2,3]"#, r#"[1,"***",3]"#),
        ("$['a b'][\"c.d\"]", r#"{"a b":{"c.d":1}}"#, r#"{"a b":{"c.d":"***"}}"#),
        ("$.*.b", r#"{"x":{"b":1},"b":2,"y":[{"b":3}]}"#, r#"{"x":{"b":"***"},"b":2,"y":[{"b":3}]}"#),
        ("$..a..b", r#"{"b":0,"a":{"x":{"b":1}}}"#, r#"{"b":0,"a":{"x":{"b":"***"}}}"#),
        ("$.A", r#"{"a":1}"#, r#"{"a":1}"#),
    ] {
        assert_eq!(body(&at(path), before, false).unwrap(), after, "{path}");
    }
}

#[test]
fn paths_that_are_wrong_are_refused() {
    for path in ["", "a", "$", "$a", "$.", "$.a..", "$[", "$[x]", "$['a", "$['a'", "$[-1]", &format!("${}", ".a".repeat(129))] {
        let rules = Rules {
            rules: vec![Rule { name: "r".to_owned(), what: What::Json(path.to_owned()), action: Action::Drop }],
            ..Rules::default()
        };
        assert!(
            Redactor::new(&rules, &Key::new(&[1; 32])).unwrap_err().to_string().starts_with("rule r: this is no path: "),
            "{path}"
        );
    }
}

#[test]
fn what_is_not_found_keeps_its_bytes() {
    let text = " {\"n\" : 1.50E+007,\r\n\"e\":\"\\u00fc\\/\", \"pass\\u0077ord\" : [1, {}] ,\"d\":1,\"d\":2}\t";
    assert_eq!(body(&field("password"), text, false).unwrap(), text.replace("[1, {}]", "null"));
}

#[test]
fn every_one_of_many_is_found() {
    let text = "{\"password\":1,\"Pass-Word\":\"b\"}\n{\"a\":{\"password\":null}}\n\u{1e}{\"password\":\"\\\"}\"}\n";
    let after = "{\"password\":null,\"Pass-Word\":null}\n{\"a\":{\"password\":null}}\n\u{1e}{\"password\":null}\n";
    assert_eq!(body(&field("password"), text, false).unwrap(), after);
}

#[test]
fn what_is_no_json_is_dropped() {
    for text in [
        "{",
        "{\"a\":}",
        "[1,]",
        "[1 2]",
        "{\"a\" 1}",
        "{a:1}",
        "01",
        "1.",
        "tru",
        "\"\\x\"",
        "\"\\u12g4\"",
        "]",
        "{\"a\":1]",
        "'a'",
        "{\"a\":1,}",
        "\"a",
    ] {
        assert_eq!(body(&field("password"), text, false), Err(Reason::NotJson), "{text}");
    }
    assert_eq!(body(&field("password"), &"[".repeat(200), false), Err(Reason::TooDeep));
    assert_eq!(body(&field("password"), &format!("{}{}", "[".repeat(128), "]".repeat(128)), false).unwrap().len(), 256);
}

#[test]
fn what_is_cut_is_redacted_to_the_cut() {
    let whole = r#"{"a":"x","password":"secret","n":[12345,{"password":{"b":"secret"}}]}"#;
    for end in 0..whole.len() {
        let kept = body(&field("password"), &whole[..end], true).unwrap();
        assert!(!kept.contains("sec"), "{end}: {kept}");
        // Nothing is kept of a value that is not whole.
        for part in ["\"x", "12345"] {
            assert!(!kept.ends_with(part), "{end}: {kept}");
        }
    }
    assert_eq!(
        body(&field("password"), &whole[..whole.find("345").unwrap()], true).unwrap(),
        r#"{"a":"x","password":null,"n":["#
    );
}

#[test]
fn json_within_json_is_read_too() {
    let inner = serde_json::json!({"password": "secret", "n": 1}).to_string();
    let outer = serde_json::json!({"body": inner}).to_string();
    let kept: serde_json::Value = serde_json::from_str(&body(&field("password"), &outer, false).unwrap()).unwrap();
    assert_eq!(kept["body"], "{\"n\":1,\"password\":null}".to_owned());
}

fn value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "[ -~äß\\n\"\\\\]{0,12}".prop_map(Into::into)
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            proptest::collection::vec(("[ab]|password|pass_word", inner), 0..6)
                .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect()))
        ]
    })
}

fn without(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(members) => members.iter_mut().for_each(|(name, value)| {
            if name.replace('_', "") == "password" {
                *value = serde_json::Value::Null;
            } else {
                without(value);
            }
        }),
        serde_json::Value::Array(elements) => elements.iter_mut().for_each(without),
        _ => {}
    }
}

proptest! {
    #[test]
    fn the_same_is_left_as_by_a_parser(value in value(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        let redactor = redactor(&[(What::Json("$..password".to_owned()), Action::Drop), (What::Json("$..pass_word".to_owned()), Action::Drop)]);
        let mut expected = value;
        without(&mut expected);
        let left = body(&redactor, &text, false).unwrap();
        prop_assert_eq!(&left, &if pretty { serde_json::to_string_pretty(&expected) } else { serde_json::to_string(&expected) }.unwrap());
        for end in 0..=text.len() {
            if text.is_char_boundary(end) {
                prop_assert!(left.starts_with(body(&redactor, &text[..end], true).unwrap().trim_end()));
            }
        }
    }
}
