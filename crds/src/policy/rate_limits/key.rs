//! What a limit counts apart.

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Limit;
use crate::{
    check::{FIELD_NAME, Known, compile_value, note},
    policy::CEL_VARIABLES,
    problems::{FieldPath, Problems},
    rule::Rule,
    scalar::Duration,
};

const NAMED: Rule = Rule::new(
    "has(self.name) == (self.source in ['Header', 'Cookie', 'Query', 'PathParameter'])",
    "the sources Header, Cookie, Query and PathParameter need a name, and the other sources have none",
)
.at(".name");
const EXPRESSED: Rule =
    Rule::new("has(self.cel) == (self.source == 'CEL')", "the source CEL needs cel, and the other sources have none").at(".cel");

/// A part of what is counted apart.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [NAMED, EXPRESSED]))]
#[serde(rename_all = "camelCase")]
pub struct Key {
    /// Where the part comes from.
    pub source: KeySource,
    /// Name of the header field, the cookie or the parameter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = FIELD_NAME))]
    pub name: Option<String>,
    /// An expression in the Common Expression Language over `request` and `source`, as in `matches`, such as
    /// `request.headers['authorization'].startsWith('Bearer ') ? 'user' : 'guest'`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub cel: Option<String>,
}

/// Where a part of a key comes from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum KeySource {
    /// Address of the client, after `clientAddress` of the FetchrProxy; IPv6 by its /64.
    ClientIP,
    /// Value of a header field; requests without it share one count.
    Header,
    /// Value of a cookie; requests without it share one count.
    Cookie,
    /// Value of a parameter of the query, as it is spelled; requests without it share one count.
    Query,
    /// What stands in the place of a placeholder in the path template of the match that the request met; requests that met a match without it
    /// share one count.
    PathParameter,
    /// The match of the rule that the request met: each path pattern has a count of its own.
    Route,
    /// Host that the request is for.
    Host,
    /// Method of the request.
    Method,
    /// What an expression gives: a text, a number or a truth. Requests for which it fails share one count.
    CEL,
}

/// Other numbers for one of what is counted apart, or some.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Override {
    /// The values of the parts of the key, in its order: as they are spelled, or `*` for any. Of the source `ClientIP` an address or a network,
    /// such as `10.0.0.0/8`.
    #[schemars(length(min = 1, max = 4), inner(length(max = 1024)), extend("x-kubernetes-list-type" = "atomic"))]
    pub values: Vec<String>,
    /// How many requests in how much time, or at once: by the algorithm of the limit.
    pub limit: Limit,
}

pub(super) fn check(key: &[Key], at: &FieldPath, problems: &mut Problems) {
    static KNOWN: Known = Known::new();
    for (index, part) in key.iter().enumerate() {
        let at = at.index(index);
        NAMED.check(part.name.is_some() == part.source.is_named(), &at, problems);
        EXPRESSED.check(part.cel.is_some() == (part.source == KeySource::CEL), &at, problems);
        if let Some(cel) = &part.cel {
            note(KNOWN.check(cel, |cel| compile_value(cel, CEL_VARIABLES).map(drop)), &at.field("cel"), problems);
        }
        let same =
            |other: &Key| (other.source, &other.cel, other.lower_case_name()) == (part.source, &part.cel, part.lower_case_name());
        if key[..index].iter().any(same) {
            problems.add(&at, "stands in the key already: remove it");
        }
    }
}

impl KeySource {
    fn is_named(self) -> bool {
        matches!(self, Self::Header | Self::Cookie | Self::Query | Self::PathParameter)
    }
}

impl Key {
    /// Names of header fields are the same in any case.
    fn lower_case_name(&self) -> Option<String> {
        self.name.as_ref().map(|name| if self.source == KeySource::Header { name.to_ascii_lowercase() } else { name.clone() })
    }
}

impl Override {
    pub(super) fn check(&self, key: &[Key], (limit, delay): (&Limit, Option<Duration>), at: &FieldPath, problems: &mut Problems) {
        if self.values.len() != key.len() {
            let message =
                format!("{} values for a key of {} parts: write one for each, or * for any", self.values.len(), key.len());
            problems.add(&at.field("values"), message);
        }
        if self.limit.algorithm != limit.algorithm {
            problems.add(&at.field("limit").field("algorithm"), format!("the limit's is {:?}: write the same", limit.algorithm));
        }
        for (index, (value, part)) in self.values.iter().zip(key).enumerate() {
            if part.source != KeySource::ClientIP || value == "*" {
                continue;
            }
            let message = match parse_network(value) {
                None => format!("{value:?} is no address and no network: write one such as 10.0.0.7 or 10.0.0.0/8"),
                Some(IpNet::V6(network)) if network.prefix_len() > 64 => {
                    format!(
                        "{value:?} is less than what is counted apart: write a network of /64 or larger, such as 2001:db8::/64"
                    )
                }
                Some(_) => continue,
            };
            problems.add(&at.field("values").index(index), message);
        }
        self.limit.check(delay, &at.field("limit"), problems);
    }
}

/// Reads an address as the network of that address alone.
pub fn parse_network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(Into::into))
}
