//! Regular expressions within a size limit.

use std::fmt::Display;

use regex_automata::{meta::Regex, util::syntax};

/// Most bytes that one compiled expression may take.
const SIZE_LIMIT: usize = 256 * 1024;

/// How deep groups and repetitions may be nested.
const NEST_LIMIT: u32 = 50;

/// Compiles an expression that has to match a whole value (RE2 syntax: no look-around, no back-references; linear time).
///
/// The sidecar compiles with the same function, so what is accepted here works there.
pub fn compile_pattern(pattern: &str) -> Result<Regex, String> {
    let config = Regex::config()
        .nfa_size_limit(Some(SIZE_LIMIT))
        .onepass_size_limit(Some(SIZE_LIMIT))
        .hybrid_cache_capacity(SIZE_LIMIT)
        .dfa_size_limit(Some(SIZE_LIMIT));
    // The expression is parsed alone first: `a)(b` must not become legal inside of the group.
    syntax::parse_with(pattern, &syntax::Config::new().nest_limit(NEST_LIMIT)).map_err(|error| illegal(pattern, &error))?;
    Regex::builder()
        .configure(config)
        .syntax(syntax::Config::new().nest_limit(NEST_LIMIT + 2))
        .build(&format!("^(?:{pattern})$"))
        .map_err(|error| match error.syntax_error() {
            Some(error) => illegal(pattern, error),
            None => format!(
                "{pattern:?} is too large: compiled, it takes more than {} KiB; use fewer or smaller repetitions",
                SIZE_LIMIT / 1024
            ),
        })
}

fn illegal(pattern: &str, error: &dyn Display) -> String {
    // The parser draws the expression with a mark below it; the last line says what is wrong.
    let text = error.to_string();
    let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
    format!("{pattern:?} is not a regular expression: {reason} (RE2 syntax: no look-around, no back-references)")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pattern_matches_the_whole_value() {
        let regex = compile_pattern("a|bc").expect("it is a pattern");
        assert!(regex.is_match("a") && regex.is_match("bc"));
        assert!(!regex.is_match("ab") && !regex.is_match("bcd") && !regex.is_match("xa"));
    }

    #[test]
    fn pattern_cannot_break_out_of_its_group() {
        for pattern in ["a)(?:b", "a)|(?:b", "(?x)a #", "("] {
            let refused = compile_pattern(pattern).expect_err(pattern);
            assert!(refused.contains("is not a regular expression"), "{refused}");
        }
    }

    #[test]
    fn large_and_deep_patterns_are_refused() {
        for pattern in [r"(\w{1,100}){1,100}".to_owned(), r"\pL{500}".to_owned()] {
            assert!(compile_pattern(&pattern).expect_err(&pattern).contains("is too large"));
        }
        let deep = format!("{}a{}", "(".repeat(100), ")".repeat(100));
        assert!(compile_pattern(&deep).is_err());
        assert!(compile_pattern(&"[a-z]".repeat(200)).is_ok());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(pattern in "[(){}|*+?a-z0-9,\\\\pw:<>=!#x \\[\\]^-]{0,40}") {
            drop(compile_pattern(&pattern));
        }
    }
}
