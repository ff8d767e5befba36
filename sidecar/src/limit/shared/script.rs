//! The scripts: what they are asked, and what they answer.

use std::time::Duration;

use redis::{Cmd, Script, Value};
use smallvec::SmallVec;

use super::{
    model::{Answer, Exchange, Exchanged, Mark, Told, Verdict},
    rule::{Bucket, Charge, ChargeId, MOST, Micros, Rule, Slots},
};

/// How long it is remembered that a charge was refunded, in milliseconds: longer than anybody tries.
const REFUNDED: u64 = 60_000;
/// Numbers that are answered of each limit.
const NUMBERS: usize = 7;

/// All of them.
#[derive(Clone, Debug)]
pub(super) struct Scripts {
    pub(super) pass: Source,
    pub(super) refund: Source,
    pub(super) lease: Source,
    pub(super) renew: Source,
}

/// One of them.
#[derive(Clone, Debug)]
pub(super) struct Source {
    code: String,
    hash: String,
}

/// How a script is named to Redis.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum By {
    Hash,
    /// Which makes it known by its hash from then on.
    Code,
}

/// A charge that can be refunded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Charged {
    pub(super) name: String,
    pub(super) rule: Rule,
    pub(super) cost: u64,
    pub(super) mark: Mark,
}

/// The answer is not one of these scripts.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("the answer of a script is not understood")]
pub(super) struct Malformed;

impl Scripts {
    pub(super) fn new() -> Self {
        Self::of(str::to_owned)
    }

    /// With each source as a test has it.
    pub(super) fn of(edit: impl Fn(&str) -> String) -> Self {
        const PRELUDE: &str = include_str!("prelude.lua");
        const BUCKET: &str = include_str!("bucket.lua");
        const KINDS: &str =
            concat!(include_str!("sliding.lua"), "\n", include_str!("fixed.lua"), "\n", include_str!("slots.lua"), "\n");
        let source = |parts: &[&str]| Source::new(edit(&parts.join("\n")));
        Self {
            pass: source(&[PRELUDE, BUCKET, KINDS, include_str!("pass.lua")]),
            refund: source(&[PRELUDE, BUCKET, KINDS, include_str!("refund.lua")]),
            lease: source(&[PRELUDE, BUCKET, include_str!("lease.lua")]),
            renew: source(&[PRELUDE, include_str!("renew.lua")]),
        }
    }

    /// Charges all of them, or none. [`answer`] reads what comes.
    pub(super) fn pass(&self, by: By, id: ChargeId, charges: &[&Charge<'_>]) -> Cmd {
        let mut command = self.pass.command(by, charges.len());
        charges.iter().for_each(|charge| {
            command.arg(charge.name());
        });
        command.arg(id.to_string());
        for charge in charges {
            command
                .arg(charge.rule.letter())
                .arg(charge.treatment.letter())
                .arg(charge.units())
                .arg(&charge.rule.parameters()[..]);
        }
        command
    }

    /// Gives back what one pass charged in one slot. Nothing of what comes matters.
    pub(super) fn refund(&self, by: By, id: ChargeId, charged: &[Charged]) -> Cmd {
        let mut command = self.refund.command(by, charged.len() + 1);
        charged.iter().for_each(|charged| {
            command.arg(&charged.name);
        });
        // In the slot of all.
        command.arg(format!("{}:{id}", charged.first().map_or("", |first| &first.name)));
        command.arg(id.to_string()).arg(REFUNDED);
        for Charged { rule, cost, mark, .. } in charged {
            command.arg(rule.letter()).arg(*cost).arg(&mark[..]).arg(&rule.parameters()[..3]);
        }
        command
    }

    /// Ends a lease on a bucket and begins another. [`exchanged`] reads what comes.
    pub(super) fn lease(&self, by: By, key: &str, rule: &Bucket, exchange: &Exchange) -> Cmd {
        let mut command = self.lease.command(by, 2);
        command.arg(format!("{key}:b")).arg(format!("{key}:l"));
        match exchange.end {
            Some((id, tokens, unused)) => command.arg(format!("{id} {tokens}")).arg(unused),
            None => command.arg("").arg(0),
        };
        let (id, wanted) = exchange.begin;
        command.arg(id.to_string()).arg(wanted.min(MOST)).arg(exchange.term);
        command.arg(&Rule::Bucket(*rule).parameters()[..3]);
        command
    }

    /// Requests that have slots are still under way.
    pub(super) fn renew(&self, by: By, key: &str, rule: &Slots, ids: &[ChargeId]) -> Cmd {
        let mut command = self.renew.command(by, 1);
        command.arg(format!("{key}:s")).arg(rule.term);
        ids.iter().for_each(|id| {
            command.arg(id.to_string());
        });
        command
    }
}

impl Charged {
    /// A charge, of which that was told.
    pub(super) fn new(charge: &Charge<'_>, mark: Mark) -> Self {
        Self { name: charge.name(), rule: charge.rule, cost: charge.units(), mark }
    }
}

impl Source {
    fn new(code: String) -> Self {
        Self { hash: Script::new(&code).get_hash().to_owned(), code }
    }

    fn command(&self, by: By, keys: usize) -> Cmd {
        let mut command = match by {
            By::Hash => redis::cmd("EVALSHA"),
            By::Code => redis::cmd("EVAL"),
        };
        command.arg(if by == By::Hash { &self.hash } else { &self.code }).arg(keys);
        command
    }
}

/// Of [`Scripts::pass`] on so many charges, with the server's time.
pub(super) fn answer(value: &Value, charges: usize) -> Result<(Answer, Micros), Malformed> {
    let numbers = numbers(value)?;
    let (denied, now, told) = match numbers[..] {
        [denied, now, ref told @ ..] => (denied, unsigned(now)?, told),
        _ => return Err(Malformed),
    };
    if denied == -1 && told.is_empty() {
        return Ok((Answer::Foreign, now));
    }
    let denied = usize::try_from(denied).ok().filter(|denied| *denied <= charges).ok_or(Malformed)?;
    if told.len() != charges * NUMBERS {
        return Err(Malformed);
    }
    let told = told.chunks_exact(NUMBERS).map(one).collect::<Result<_, _>>()?;
    Ok((Answer::Decided { denied: denied.checked_sub(1), told }, now))
}

fn one(numbers: &[i64]) -> Result<Told, Malformed> {
    let [allowed, remaining, retry, reset, one, two, three] = *numbers else { return Err(Malformed) };
    let mark = [unsigned(one)?, unsigned(two)?, unsigned(three)?];
    Ok(Told { verdict: verdict(allowed == 1, remaining, retry, reset)?, mark })
}

/// Of [`Scripts::lease`].
pub(super) fn exchanged(value: &Value) -> Result<Exchanged, Malformed> {
    let [ended, granted, remaining, retry, reset] = numbers(value)?[..] else { return Err(Malformed) };
    let verdict = verdict(retry == 0, remaining, retry, reset)?;
    Ok(Exchanged { ended: ended == 1, granted: unsigned(granted)?, verdict })
}

fn verdict(allowed: bool, remaining: i64, retry: i64, reset: i64) -> Result<Verdict, Malformed> {
    let retry = if retry == -1 { None } else { Some(Duration::from_micros(unsigned(retry)?)) };
    Ok(Verdict { allowed, remaining: unsigned(remaining)?, retry, reset: Duration::from_micros(unsigned(reset)?) })
}

fn numbers(value: &Value) -> Result<SmallVec<[i64; 32]>, Malformed> {
    let Value::Array(values) = value else { return Err(Malformed) };
    let number = |value: &Value| if let Value::Int(number) = value { Ok(*number) } else { Err(Malformed) };
    values.iter().map(number).collect()
}

fn unsigned(number: i64) -> Result<u64, Malformed> {
    u64::try_from(number).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(numbers: &[i64]) -> Value {
        Value::Array(numbers.iter().map(|number| Value::Int(*number)).collect())
    }

    #[test]
    fn answers_of_others_are_no_verdicts() {
        let whole = [0, 5, 1, 9, 0, 3, 7, 8, 9];
        let (Answer::Decided { denied: None, told }, 5) = answer(&value(&whole), 1).unwrap() else { panic!("it is decided") };
        assert_eq!((told[0].verdict.remaining, told[0].mark), (9, [7, 8, 9]));
        assert_eq!(answer(&value(&[-1, 5]), 1), Ok((Answer::Foreign, 5)));
        for wrong in [value(&whole[..8]), value(&[2, 5, 1, 9, 0, 3, 7, 8, 9]), value(&[-2, 5]), value(&[]), Value::Nil] {
            assert_eq!(answer(&wrong, 1), Err(Malformed), "{wrong:?}");
        }
        assert_eq!(answer(&value(&whole), 2), Err(Malformed));
        let negative = [0, 5, 1, -9, 0, 3, 7, 8, 9];
        assert_eq!(answer(&value(&negative), 1), Err(Malformed));
        assert_eq!(exchanged(&value(&[1, 2, 3])), Err(Malformed));
    }
}
