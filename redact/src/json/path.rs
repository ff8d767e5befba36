//! The paths of rules for JSON: a small subset of RFC 9535. All paths are matched together, as a set of steps that may come next.

/// Steps that all paths together may have: a set of them is one number.
const MOST: usize = 128;

/// Steps that may come next, by their number.
pub(crate) type Active = u128;

/// Compiled paths.
#[derive(Clone, Default)]
pub(crate) struct Paths {
    steps: Vec<Step>,
    starts: Active,
}

#[derive(Clone)]
struct Step {
    /// It may also lie deeper.
    descends: bool,
    test: Test,
    /// The rule of the path that ends here.
    rule: Option<usize>,
}

#[derive(Clone)]
enum Test {
    Name(Box<[u8]>),
    Index(usize),
    Any,
}

/// Where a value lies in what it is part of.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    Member(&'a [u8]),
    Element(usize),
}

impl Paths {
    /// Reads a path.
    pub(crate) fn insert(&mut self, path: &str, rule: usize) -> Result<(), &'static str> {
        let mut rest = path.strip_prefix('$').ok_or("it begins with $")?;
        let first = self.steps.len();
        while !rest.is_empty() {
            let (step, after) = step(rest)?;
            self.steps.push(step);
            rest = after;
        }
        if self.steps.len() > MOST {
            return Err("all paths together have at most 128 steps");
        }
        let last = self.steps[first..].last_mut().ok_or("it has at least one step, such as $.name")?;
        last.rule = Some(rule);
        self.starts |= 1 << first;
        Ok(())
    }

    /// The set at the top of a document.
    pub(crate) fn starts(&self) -> Active {
        self.starts
    }

    /// The set within a value, and the first rule that finds it, from the set around it.
    pub(crate) fn enter(&self, around: Active, place: Place<'_>) -> (Active, Option<usize>) {
        let (mut within, mut rule) = (0, None);
        let mut left = around;
        while left != 0 {
            let at = left.trailing_zeros() as usize;
            left &= left - 1;
            let step = &self.steps[at];
            if step.descends {
                within |= 1 << at;
            }
            if step.test.holds(place) {
                match step.rule {
                    Some(found) => rule = crate::name::first(rule, Some(found)),
                    None => within |= 1 << (at + 1),
                }
            }
        }
        (within, rule)
    }
}

impl Test {
    fn holds(&self, place: Place<'_>) -> bool {
        match (self, place) {
            (Self::Any, _) => true,
            (Self::Name(name), Place::Member(member)) => **name == *member,
            (Self::Index(index), Place::Element(element)) => *index == element,
            _ => false,
        }
    }
}

fn step(text: &str) -> Result<(Step, &str), &'static str> {
    let (descends, rest) = match text.strip_prefix("..") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (test, rest) = if let Some(inner) = rest.strip_prefix('[') {
        bracket(inner)?
    } else {
        let rest = if descends { rest } else { rest.strip_prefix('.').ok_or("each step begins with . or [")? };
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        match &rest[..end] {
            "" => return Err("a name stands after each dot"),
            "*" => (Test::Any, &rest[end..]),
            name => (Test::Name(name.as_bytes().into()), &rest[end..]),
        }
    };
    Ok((Step { descends, test, rule: None }, rest))
}

fn bracket(inner: &str) -> Result<(Test, &str), &'static str> {
    const WRONG: &str = "between brackets stands *, a number or a name in quotes";
    for quote in ['\'', '"'] {
        if let Some(name) = inner.strip_prefix(quote) {
            let end = name.find(quote).ok_or(WRONG)?;
            let rest = name[end + 1..].strip_prefix(']').ok_or(WRONG)?;
            return Ok((Test::Name(name.as_bytes()[..end].into()), rest));
        }
    }
    let (inner, rest) = inner.split_once(']').ok_or(WRONG)?;
    let test = if inner == "*" { Test::Any } else { Test::Index(inner.parse().map_err(|_| WRONG)?) };
    Ok((test, rest))
}
