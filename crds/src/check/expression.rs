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
    match program.expression().expr {
        Expr::List(_) | Expr::Map(_) | Expr::Struct(_) => Err(not_a_condition()),
        Expr::Literal(ref literal) if !matches!(literal, LiteralValue::Boolean(_)) => Err(not_a_condition()),
        Expr::Call(ref call) if gives_no_truth(&call.func_name) => Err(not_a_condition()),
        _ => Ok(program),
    }
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
