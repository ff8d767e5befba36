//! What a request takes of a limit.

use crds::policy::rate_limits::{self, CostSource};
use http::{HeaderMap, HeaderName};

use crate::{
    facts::Facts,
    route::{Evaluated, Expression},
};

/// What a request takes of a limit, compiled.
#[derive(Debug)]
pub(super) enum Cost {
    Fixed(u64),
    Expression(Expression),
    /// What is known only when the request has ended.
    Afterwards(Afterwards),
}

/// Where a cost comes from that is known only when the request has ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Afterwards {
    RequestBytes,
    ResponseBytes,
    ResponseHeader(HeaderName),
}

impl Cost {
    /// Compiles it; without one, a request costs one.
    pub(super) fn build(cost: Option<&rate_limits::Cost>) -> Result<Self, String> {
        let Some(cost) = cost else { return Ok(Self::Fixed(1)) };
        Ok(match cost.source {
            CostSource::Fixed => {
                Self::Fixed(cost.value.and_then(|value| u64::try_from(value).ok()).ok_or("a fixed cost needs a value")?)
            }
            CostSource::CEL => Self::Expression(Expression::compile(cost.cel.as_deref().unwrap_or_default())?),
            CostSource::RequestBytes => Self::Afterwards(Afterwards::RequestBytes),
            CostSource::ResponseBytes => Self::Afterwards(Afterwards::ResponseBytes),
            CostSource::ResponseHeader => {
                let name = cost.name.as_deref().unwrap_or_default();
                let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is no field name"))?;
                Self::Afterwards(Afterwards::ResponseHeader(name))
            }
        })
    }

    /// What a request takes before it is forwarded: nothing, if that is known only afterwards.
    pub(super) fn before(&self, facts: &Facts<'_>) -> u64 {
        match self {
            Self::Fixed(cost) => *cost,
            Self::Expression(expression) => expression.count(&Evaluated::new(facts, facts.path)).unwrap_or(1),
            Self::Afterwards(_) => 0,
        }
    }

    /// The field of a response that says it.
    pub(super) fn field(&self) -> Option<&HeaderName> {
        if let Self::Afterwards(Afterwards::ResponseHeader(name)) = self { Some(name) } else { None }
    }

    /// What it takes when it has ended.
    pub(super) fn afterwards(&self) -> Option<&Afterwards> {
        if let Self::Afterwards(afterwards) = self { Some(afterwards) } else { None }
    }
}

/// The cost that a field of a response says.
pub(super) fn said(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}
