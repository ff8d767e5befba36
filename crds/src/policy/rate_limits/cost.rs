//! What a request takes of a limit.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::{FIELD_NAME, Known, compile_value, note},
    policy::CEL_VARIABLES,
    problems::{FieldPath, Problems},
    rule::Rule,
};

const VALUED: Rule =
    Rule::new("has(self.value) == (self.source == 'Fixed')", "the source Fixed needs a value, and the other sources have none")
        .at(".value");
const EXPRESSED: Rule =
    Rule::new("has(self.cel) == (self.source == 'CEL')", "the source CEL needs cel, and the other sources have none").at(".cel");
const NAMED: Rule = Rule::new(
    "has(self.name) == (self.source == 'ResponseHeader')",
    "the source ResponseHeader needs a name, and the other sources have none",
)
.at(".name");

/// What a request takes of a limit.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [VALUED, EXPRESSED, NAMED]))]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    /// Where the number comes from.
    pub source: CostSource,
    /// The number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub value: Option<i64>,
    /// An expression in the Common Expression Language over `request` and `source`, as in `matches`, that gives a whole number. Where it
    /// fails, or gives less than nothing, a request costs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub cel: Option<String>,
    /// Name of the field of the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = FIELD_NAME))]
    pub name: Option<String>,
}

/// Where a cost comes from. What is known only afterwards is charged then: such a limit allows requests until it is used up, and what
/// they took beyond it has to come in again before the next one.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum CostSource {
    /// A number.
    Fixed,
    /// What an expression gives.
    CEL,
    /// Bytes of the request's body that were forwarded. Known afterwards.
    RequestBytes,
    /// Bytes of the response's body that were sent. Known afterwards.
    ResponseBytes,
    /// A whole number in a field of the response; without it, one. The field does not reach the client. Known afterwards.
    ResponseHeader,
}

impl CostSource {
    /// Whether it is known only afterwards.
    pub fn is_afterwards(self) -> bool {
        matches!(self, Self::RequestBytes | Self::ResponseBytes | Self::ResponseHeader)
    }
}

impl Cost {
    pub(super) fn check(&self, at: &FieldPath, problems: &mut Problems) {
        static KNOWN: Known = Known::new();
        VALUED.check(self.value.is_some() == (self.source == CostSource::Fixed), at, problems);
        EXPRESSED.check(self.cel.is_some() == (self.source == CostSource::CEL), at, problems);
        NAMED.check(self.name.is_some() == (self.source == CostSource::ResponseHeader), at, problems);
        if let Some(cel) = &self.cel {
            note(KNOWN.check(cel, |cel| compile_value(cel, CEL_VARIABLES).map(drop)), &at.field("cel"), problems);
        }
    }
}
