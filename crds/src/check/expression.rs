//! Expressions in the Common Expression Language: they compile, and they are cheap.
//!
//! The evaluator has no limit of its own, so what could be slow is refused here, by a walk over the syntax tree: the tree is small,
//! nothing runs over a list inside of a run over a list, and regular expressions are written out, so that they can be checked too.

use cel::{
    IdedExpr, Program,
    common::ast::{CallExpr, EntryExpr, Expr, IdedEntryExpr, LiteralValue},
};

use super::pattern::compile_pattern;

/// Most bytes of an expression; the schema says so too.
const MAX_LENGTH: usize = 1024;
/// Most nodes of its syntax tree; `a == 'b'` has three.
const MAX_NODES: usize = 256;
/// How deep calls, lists and groups may be nested.
const MAX_DEPTH: usize = 32;

/// Functions and operators that an expression may call. All of them take time in proportion to their arguments.
const FUNCTIONS: &[&str] = &[
    "!_",
    "-_",
    "_!=_",
    "_%_",
    "_&&_",
    "_*_",
    "_+_",
    "_-_",
    "_/_",
    "_<=_",
    "_<_",
    "_==_",
    "_>=_",
    "_>_",
    "_?_:_",
    "_[_]",
    "_||_",
    "@in",
    "@not_strictly_false",
    "contains",
    "double",
    "endsWith",
    "int",
    "matches",
    "size",
    "startsWith",
    "string",
    "uint",
];

/// Compiles a condition over the variables in `variables`. What is too costly is refused, with what makes it so.
///
/// The sidecar compiles with the same function, so what is accepted here works there.
pub fn compile_expression(source: &str, variables: &[&str]) -> Result<Program, String> {
    let program = compile_value(source, variables)?;
    match program.expression().expr {
        Expr::List(_) | Expr::Map(_) | Expr::Struct(_) => Err(not_a_condition()),
        Expr::Literal(ref literal) if !matches!(literal, LiteralValue::Boolean(_)) => Err(not_a_condition()),
        Expr::Call(ref call) if gives_no_truth(&call.func_name) => Err(not_a_condition()),
        _ => Ok(program),
    }
}

/// Compiles an expression of any type, as [`compile_expression`] does a condition.
pub fn compile_value(source: &str, variables: &[&str]) -> Result<Program, String> {
    if source.len() > MAX_LENGTH {
        return Err(format!("the expression is too costly: it has {} bytes, {MAX_LENGTH} are allowed", source.len()));
    }
    if let Some(depth) = deepest_nesting(source).filter(|depth| *depth > MAX_DEPTH) {
        return Err(format!("the expression is too costly: it is nested {depth} deep, {MAX_DEPTH} are allowed"));
    }
    let program = Program::compile(source).map_err(|errors| {
        let first = errors.errors.first().map_or("unreadable", |error| error.msg.as_str());
        let column = errors.errors.first().map_or(0, |error| error.pos.1);
        format!("{source:?} is not a CEL expression: at character {column}: {first}")
    })?;
    let mut walk = Walk { nodes: 0, scope: variables.iter().map(|&name| name.to_owned()).collect(), variables };
    walk.visit(program.expression(), 0, false)?;
    Ok(program)
}

fn not_a_condition() -> String {
    "the expression is not a condition: it must come out as true or false, such as request.method == 'GET'".to_owned()
}

fn gives_no_truth(function: &str) -> bool {
    matches!(function, "-_" | "_%_" | "_*_" | "_+_" | "_-_" | "_/_" | "double" | "int" | "size" | "string" | "uint")
}

/// How deep brackets are nested, outside of quotes. Looked at before parsing: the parser calls itself for each level.
fn deepest_nesting(source: &str) -> Option<usize> {
    let (mut depth, mut deepest, mut quote, mut escaped) = (0usize, 0, None, false);
    for char in source.chars() {
        match (quote, char) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), _) if open == char => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(char),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => depth = depth.saturating_sub(1),
            (None, _) => {}
        }
        deepest = deepest.max(depth);
    }
    (deepest > 0).then_some(deepest)
}

struct Walk<'a> {
    nodes: usize,
    variables: &'a [&'a str],
    /// Names that are known here: the variables, and what the comprehension around binds.
    scope: Vec<String>,
}

impl Walk<'_> {
    fn visit(&mut self, node: &IdedExpr, depth: usize, in_comprehension: bool) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(format!(
                "the expression is too costly: it has more than {MAX_NODES} parts; split it over several matches"
            ));
        }
        // A chain such as `a && b && c` is a tree as deep as it is long, so the limit here is wider than for brackets.
        if depth > 2 * MAX_DEPTH {
            return Err("the expression is too costly: it is nested too deep; split it over several matches".to_owned());
        }
        let mut visit = |node: &IdedExpr| self.visit(node, depth + 1, in_comprehension);
        match &node.expr {
            Expr::Literal(_) | Expr::Unspecified => Ok(()),
            Expr::Ident(name) => self.known(name),
            Expr::Select(select) => visit(&select.operand),
            Expr::List(list) => list.elements.iter().try_for_each(visit),
            Expr::Map(map) => self.visit_entries(&map.entries, depth, in_comprehension),
            Expr::Struct(one) => Err(format!("{} is not known: an expression makes no objects", one.type_name)),
            Expr::Call(call) => {
                check_call(call)?;
                call.target.iter().map(|target| &**target).chain(&call.args).try_for_each(visit)
            }
            Expr::Comprehension(_) if in_comprehension => Err(
                "the expression is too costly: a macro (all, exists, exists_one, map, filter) inside of another one runs for each pair \
                 of elements; use one at a time"
                    .to_owned(),
            ),
            Expr::Comprehension(comprehension) => {
                visit(&comprehension.iter_range)?;
                let outer = self.scope.len();
                self.scope.extend([comprehension.iter_var.clone(), comprehension.accu_var.clone()]);
                self.scope.extend(comprehension.iter_var2.clone());
                let parts = [&comprehension.accu_init, &comprehension.loop_cond, &comprehension.loop_step, &comprehension.result];
                parts.into_iter().try_for_each(|part| self.visit(part, depth + 1, true))?;
                self.scope.truncate(outer);
                Ok(())
            }
        }
    }

    fn visit_entries(&mut self, entries: &[IdedEntryExpr], depth: usize, in_comprehension: bool) -> Result<(), String> {
        for IdedEntryExpr { expr, .. } in entries {
            match expr {
                EntryExpr::MapEntry(entry) => {
                    self.visit(&entry.key, depth + 1, in_comprehension)?;
                    self.visit(&entry.value, depth + 1, in_comprehension)?;
                }
                EntryExpr::StructField(field) => self.visit(&field.value, depth + 1, in_comprehension)?,
            }
        }
        Ok(())
    }

    fn known(&self, name: &str) -> Result<(), String> {
        if self.scope.iter().any(|known| known == name) {
            return Ok(());
        }
        Err(format!("{name} is not known: an expression may use {}", self.variables.join(" and ")))
    }
}

fn check_call(call: &CallExpr) -> Result<(), String> {
    let name = call.func_name.as_str();
    if !FUNCTIONS.contains(&name) {
        let known: Vec<_> =
            FUNCTIONS.iter().filter(|name| name.starts_with(|first: char| first.is_ascii_alphabetic())).copied().collect();
        return Err(format!("the function {name} is not known: an expression may call {}", known.join(", ")));
    }
    if name != "matches" {
        return Ok(());
    }
    match call.args.last().map(|last| &last.expr) {
        Some(Expr::Literal(LiteralValue::String(pattern))) => compile_pattern(pattern.inner()).map(drop),
        _ => Err("the expression is too costly: matches needs its regular expression written out, in quotes".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    fn refusal(source: &str) -> String {
        compile_expression(source, &["request", "source"]).err().unwrap_or_default()
    }

    #[test]
    fn ordinary_conditions_are_accepted() {
        for source in [
            "true",
            "request.method == 'GET'",
            "request.headers['x-tier'] in ['gold', 'silver'] && !request.path.startsWith('/internal')",
            "has(request.query.page) ? int(request.query.page) > 10 : false",
            "['a', 'b'].exists(one, one == request.host) || size(request.path) > 100",
            "request.path.matches('/v[0-9]+/.*')",
            "source.address != '192.0.2.1'",
            "{'GET': true}[request.method]",
        ] {
            assert_eq!(refusal(source), "", "{source}");
        }
    }

    #[test]
    fn costly_conditions_are_refused_with_what_makes_them_so() {
        let nested = "request.headers.all(a, request.headers.all(b, a != b))";
        let in_range = "request.headers.map(a, a).exists(b, ['x'].exists(c, c == b))";
        let long = vec!["request.method == 'GET'"; 60].join(" || ");
        let many = format!("request.method in [{}]", vec!["1"; 300].join(","));
        let deep = format!("{}true{}", "[".repeat(60), "]".repeat(60));
        let chained = format!("true{}", " && true".repeat(90));
        for (source, reason) in [
            (nested, "a macro (all, exists, exists_one, map, filter) inside of another"),
            (in_range, "inside of another"),
            (&long, "bytes, 1024 are allowed"),
            (&many, "more than 256 parts"),
            (&deep, "nested 60 deep"),
            ("request.path.matches(request.path)", "matches needs its regular expression written out"),
        ] {
            let refused = refusal(source);
            assert!(refused.contains("too costly") && refused.contains(reason), "{source}: {refused}");
        }
        assert_eq!(refusal(&chained), "");
    }

    #[test]
    fn what_is_not_known_is_refused_with_what_is() {
        assert!(refusal("response.status == 1").contains("an expression may use request and source"));
        assert!(refusal("request.path.lowerAscii() == 'a'").contains("an expression may call contains, double"));
        assert!(refusal("request.path.matches('(')").contains("is not a regular expression"));
        assert!(refusal("Foo{a: 1} == 1").contains("not known"));
    }

    #[test]
    fn what_gives_no_truth_is_refused() {
        for source in ["1 + 1", "'GET'", "size(request.path)", "[true]", "{'a': true}"] {
            assert!(refusal(source).contains("is not a condition"), "{source}");
        }
    }

    #[test]
    fn brackets_in_quotes_do_not_count() {
        assert_eq!(refusal(&format!("request.path != '{}'", "(".repeat(100))), "");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(source in "\\PC{0,60}") {
            drop(compile_expression(&source, &["request"]));
        }

        #[test]
        fn no_row_of_tokens_makes_it_panic(tokens in proptest::collection::vec(select(&TOKENS[..]), 0..24)) {
            drop(compile_expression(&tokens.join(" "), &["request"]));
        }
    }

    const TOKENS: [&str; 36] = [
        "request", ".", "path", "(", ")", "[", "]", "{", "}", ",", ":", "?", "&&", "||", "!", "-", "+", "*", "/", "%", "==", "<",
        "in", "has", "all", "exists", "map", "x", "1", "0x1", "1u", "1.5e3", "'a'", "\"b\"", "b'c'", "r'\\d'",
    ];
}
