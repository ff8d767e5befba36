//! A YAML file as documents that know where each field stands.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::{Location, Spanned};

use crate::problems::{FieldPath, Problems};

use super::substitute::substitute;

/// Most values in one file, aliases counted as often as they stand there: no small file unfolds into a large one.
const MAX_NODES: usize = 100_000;
/// How deep a document may be nested.
const MAX_DEPTH: usize = 64;

/// A line and a column, from 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Place {
    pub(super) line: u64,
    pub(super) column: u64,
}

impl From<Location> for Place {
    fn from(location: Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

/// One document of a file.
pub(super) struct SourceDocument {
    value: Value,
    places: BTreeMap<String, Place>,
}

/// Reads all documents of a YAML 1.2 file; JSON is YAML.
pub(super) fn parse(text: &str) -> Result<Vec<SourceDocument>, (Place, String)> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_documents: 1024,
            max_aliases: 1000,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_NODES },
        with_snippet: false,
        strict_booleans: true,
    };
    let nodes: Vec<Spanned<Node>> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let place = error.location().map_or(Place { line: 1, column: 1 }, Place::from);
        (place, format!("not readable as YAML: {}", error.without_snippet()))
    })?;
    Ok(nodes.into_iter().map(SourceDocument::new).collect())
}

impl SourceDocument {
    fn new(node: Spanned<Node>) -> Self {
        let mut places = BTreeMap::new();
        let place = Place::from(node.referenced);
        let value = node.value.into_value(&FieldPath::default(), place, &mut places);
        Self { value, places }
    }

    /// Where a field stands; one that is missing, where the object stands that should have it.
    pub(super) fn place(&self, field: &FieldPath) -> Place {
        let text = field.to_string();
        let mut path = text.as_str();
        loop {
            if let Some(place) = self.places.get(path) {
                return *place;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return self.places.get("").copied().unwrap_or(Place { line: 1, column: 1 }),
            }
        }
    }

    /// A top-level text, or nothing.
    pub(super) fn text_of(&self, field: &str) -> &str {
        self.value[field].as_str().unwrap_or_default()
    }

    /// API group and kind.
    pub(super) fn group_and_kind(&self) -> (&str, &str) {
        let (group, _) = self.text_of("apiVersion").split_once('/').unwrap_or_default();
        (group, self.text_of("kind"))
    }

    /// The document with the variables of its texts filled in, and those that are missing.
    pub(super) fn substituted(&self, env: &dyn Fn(&str) -> Option<String>) -> (Value, Problems) {
        let mut value = self.value.clone();
        let problems = substitute(&mut value, self.group_and_kind().1, env);
        (value, problems)
    }
}

/// A value with the places of what it holds.
enum Node {
    Scalar(Value),
    List(Vec<Spanned<Node>>),
    Object(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl Node {
    fn into_value(self, at: &FieldPath, place: Place, places: &mut BTreeMap<String, Place>) -> Value {
        places.insert(at.to_string(), place);
        match self {
            Self::Scalar(value) => value,
            Self::List(items) => items
                .into_iter()
                .enumerate()
                .map(|(index, item)| {
                    let place = Place::from(item.referenced);
                    item.value.into_value(&at.index(index), place, places)
                })
                .collect(),
            Self::Object(fields) => {
                let mut object = Map::new();
                for (name, field) in fields {
                    // A scalar stands where it is written; what spans lines, where its name is.
                    let scalar = matches!(field.value, Self::Scalar(_));
                    let place = Place::from(if scalar { field.referenced } else { name.referenced });
                    let value = field.value.into_value(&at.field(&name.value), place, places);
                    object.insert(name.value, value);
                }
                object.into()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        let number = serde_json::Number::from_f64(value).ok_or_else(|| E::custom("a number is finite"))?;
        Ok(Node::Scalar(number.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let (mut fields, mut names) = (Vec::new(), HashSet::new());
        while let Some((name, field)) = access.next_entry::<Spanned<String>, Spanned<Node>>()? {
            if !names.insert(name.value.clone()) {
                return Err(A::Error::custom(format!("the field {} is written twice", name.value)));
            }
            fields.push((name, field));
        }
        Ok(Node::Object(fields))
    }
}
