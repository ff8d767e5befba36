//! Small texts that are made to cost much: each is refused, or read, within moments.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic as tests do")]

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use crds::{
    check::{compile_expression, compile_pattern},
    document::load,
};

/// Far more than any of them takes, also where nothing is optimised and others are busy.
const MOMENT: Duration = Duration::from_secs(10);

/// Does some work, and says how long it took.
fn timed<T>(name: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    let took = start.elapsed();
    println!("{name}: {took:?}");
    assert!(took < MOMENT, "{name}: {took:?}");
    done
}

fn policy(rules: &str) -> String {
    format!(
        "apiVersion: fetchr.sh/v1alpha1\nkind: FetchrPolicy\nmetadata: {{name: a}}\nspec:\n  targetRefs: [{{kind: FetchrProxy, name: a}}]\n  rules: {rules}\n"
    )
}

#[test]
fn document_that_unfolds_nests_or_repeats_is_refused_in_a_moment() {
    // The stack that a program has; that of a test is smaller.
    thread::Builder::new().stack_size(8 << 20).spawn(refuse_documents).unwrap().join().unwrap();
}

fn refuse_documents() {
    let levels = (1..40).map(|n| format!("a{n}: &a{n} [*a{0}, *a{0}, *a{0}, *a{0}, *a{0}]\n", n - 1));
    let laughs = format!("a0: &a0 [x, x, x]\n{}", levels.collect::<String>());
    let fields: String = (0..20_000).map(|n| format!("f{n}: 1\n")).collect();
    let rules = (0..9000).map(|n| format!("{{name: r{n}, timeouts: {{request: 5s}}}}")).collect::<Vec<_>>().join(", ");
    let unknown = (0..9000).map(|n| format!("request{n}: 5s")).collect::<Vec<_>>().join(", ");
    let words = "x".repeat(1 << 19);
    for (name, text) in [
        ("aliases of aliases", laughs),
        ("ten thousand lists in each other", "[".repeat(10_000)),
        ("ten thousand objects in each other", "{a: ".repeat(10_000)),
        ("a thousand objects by indentation", (0..1000).map(|n| format!("{}a:\n", " ".repeat(n))).collect()),
        ("twenty thousand fields", policy("[]") + &fields),
        ("nine thousand rules", policy(&format!("[{rules}]"))),
        ("nine thousand unknown fields", policy(&format!("[{{name: r, timeouts: {{{unknown}}}}}]"))),
        ("a field of half a megabyte", policy(&format!("[{{name: {words}, timeouts: {{request: 5s}}}}]"))),
        ("a file beyond its limit", policy(&format!("[{{name: {}}}]", words.repeat(3)))),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        fs::write(&file, text).unwrap();
        let errors = timed(name, || load(std::slice::from_ref(&file), &|_| None).expect_err(name));
        assert!(!errors.is_empty(), "{name}");
    }
}

#[test]
fn expressions_that_multiply_are_refused_in_a_moment() {
    for pattern in [
        "((a{1,100}){1,100}){1,100}",
        r"(\pL|\pN|\pS){1000}",
        r"(?:\w+\s?){500}",
        r"[\w--[a-z]]{1000}",
        &format!("{}a{}", "(".repeat(400), ")".repeat(400)),
        &"(a?){20}".repeat(100),
        &format!("(?i){}", "ß|".repeat(400)),
    ] {
        let compiled = timed(&pattern[..pattern.len().min(30)], || compile_pattern(pattern));
        if let Ok(regex) = compiled {
            timed("and then a long text", || regex.is_match(&"a".repeat(16 << 10)));
        }
    }
    for source in [
        &"(".repeat(1000),
        &"!".repeat(1000),
        &"-".repeat(1000),
        &format!("{}1", "1+".repeat(500)),
        &format!("{}true", "true?".repeat(100)),
        &format!("request{}", ".a".repeat(500)),
        &format!("request{}", "[request".repeat(100)),
        &format!("[{}].all(x, x.all(y, y))", "[1]".to_owned() + &",[1]".repeat(100)),
    ] {
        let _ = timed(&source[..source.len().min(30)], || compile_expression(source, &["request"]));
    }
}

#[test]
fn accepted_pattern_takes_time_in_proportion_to_its_text() {
    // Where others try each way to split the text, which is exponential.
    for pattern in ["(a*)*b", "(a|a)*b", "(a|aa)+b", "(.*)*b", "(a+)+b", r"(\w+\d?)+!"] {
        let regex = compile_pattern(pattern).unwrap();
        let text = "a".repeat(16 << 10); // the longest target
        assert!(!timed(pattern, || regex.is_match(&text)), "{pattern}");
    }
}
