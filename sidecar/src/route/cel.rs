//! Conditions in the Common Expression Language.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use cel::{
    Context, Env, Program, Value,
    objects::{Key, Map},
};
use crds::{
    check::{compile_expression, compile_value},
    policy::matches::CEL_VARIABLES,
};
use http::HeaderMap;

use super::condition::parameters;
use crate::facts::Facts;

/// The standard functions, made once for all evaluations.
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// A compiled condition.
pub(crate) struct Condition {
    program: Program,
    source: Box<str>,
}

impl std::fmt::Debug for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Condition").field(&self.source).finish()
    }
}

impl Condition {
    pub(crate) fn compile(source: &str) -> Result<Self, String> {
        Ok(Self { program: compile_expression(source, CEL_VARIABLES)?, source: source.into() })
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Whether it is met; an error, which is counted, means no.
    pub(crate) fn holds(&self, request: &Request<'_>) -> bool {
        self.evaluate(request).unwrap_or_else(|_| {
            super::CEL_ERRORS.inc();
            false
        })
    }

    /// The condition's answer. An error is what a wrong type or a missing key gives.
    pub(crate) fn evaluate(&self, request: &Request<'_>) -> Result<bool, String> {
        match self.program.execute(request.context()) {
            Ok(Value::Bool(answer)) => Ok(answer),
            Ok(other) => Err(format!("the answer is of type {:?}, not bool", other.type_of())),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A compiled expression of which the value counts.
pub(crate) struct Expression {
    program: Program,
    source: Box<str>,
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Expression").field(&self.source).finish()
    }
}

impl Expression {
    pub(crate) fn compile(source: &str) -> Result<Self, String> {
        Ok(Self { program: compile_value(source, CEL_VARIABLES)?, source: source.into() })
    }

    /// As it is written.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// Its text: a number or a truth is written out. None, which is counted, if it fails or gives what has no text.
    pub(crate) fn text(&self, request: &Request<'_>) -> Option<String> {
        counted(match self.program.execute(request.context()) {
            Ok(Value::String(text)) => Some(String::clone(&text)),
            Ok(Value::Int(number)) => Some(number.to_string()),
            Ok(Value::UInt(number)) => Some(number.to_string()),
            Ok(Value::Bool(truth)) => Some(truth.to_string()),
            _ => None,
        })
    }

    /// Its whole number. None, which is counted, if it fails or gives less than nothing, or what is no number.
    pub(crate) fn count(&self, request: &Request<'_>) -> Option<u64> {
        counted(match self.program.execute(request.context()) {
            Ok(Value::Int(number)) => u64::try_from(number).ok(),
            Ok(Value::UInt(number)) => Some(number),
            _ => None,
        })
    }
}

fn counted<T>(value: Option<T>) -> Option<T> {
    if value.is_none() {
        super::CEL_ERRORS.inc();
    }
    value
}

/// A request as expressions see it; made when the first expression asks for it.
pub(crate) struct Request<'a> {
    facts: Facts<'a>,
    path: &'a str,
    context: std::cell::OnceCell<Context<'static, 'static>>,
}

impl<'a> Request<'a> {
    /// `path` is the spelling that is matched on.
    pub(crate) fn new(facts: &Facts<'a>, path: &'a str) -> Self {
        Self { facts: *facts, path, context: std::cell::OnceCell::new() }
    }

    fn context(&self) -> &Context<'static, 'static> {
        self.context.get_or_init(|| {
            let mut context = Context::with_env(Arc::clone(&ENV));
            context.add_variable_from_value("request", self.request());
            let source = map([("address", text(self.facts.client.to_canonical().to_string()))].into_iter().map(named));
            context.add_variable_from_value("source", source);
            context
        })
    }

    fn request(&self) -> Value {
        let facts = &self.facts;
        let fields = [
            ("method", text(facts.method.as_str())),
            ("path", text(self.path)),
            ("host", text(facts.host)),
            ("scheme", text(facts.scheme)),
            ("query", query(facts.query.unwrap_or_default())),
            ("headers", headers(facts.headers)),
        ];
        map(fields.into_iter().map(named))
    }
}

/// Names in lower case; lines of one name joined by a comma (RFC 9110 5.2).
fn headers(headers: &HeaderMap) -> Value {
    map(headers.keys().map(|name| {
        let lines: Vec<_> = headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
        (name.as_str().to_owned(), text(lines.join(", ")))
    }))
}

/// Decoded; the first of a name counts.
fn query(query: &str) -> Value {
    let mut seen = HashMap::new();
    for (name, value) in parameters(query) {
        seen.entry(Key::from(name.into_owned())).or_insert_with(|| text(value.into_owned()));
    }
    Value::Map(Map { map: Arc::new(seen) })
}

fn map(fields: impl Iterator<Item = (String, Value)>) -> Value {
    Value::Map(Map { map: Arc::new(fields.map(|(name, value)| (Key::from(name), value)).collect()) })
}

fn named((name, value): (&str, Value)) -> (String, Value) {
    (name.to_owned(), value)
}

fn text(text: impl Into<String>) -> Value {
    Value::String(Arc::new(text.into()))
}
