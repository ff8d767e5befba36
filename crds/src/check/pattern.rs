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
