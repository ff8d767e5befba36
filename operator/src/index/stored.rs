//! Objects of our own kinds as the API server stores them.
//!
//! One may have been stored before the schema was tightened, or by a later version. What can't be read is kept by name with what is
//! wrong with it: it costs nobody but itself.

use std::{marker::PhantomData, sync::Arc};

use crds::{plan::ObjectRef, validate::validate_value};
use kube::{
    Resource,
    core::{
        ObjectMeta,
        object::{HasSpec, HasStatus},
    },
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use tracing::warn;

/// An object of kind `K` of which nothing but the metadata has been looked at, so that a list holds what can't be read too.
#[derive(Clone, Debug, Deserialize)]
#[serde(bound = "")]
pub struct Raw<K> {
    metadata: ObjectMeta,
    #[serde(flatten)]
    fields: Map<String, Value>,
    #[serde(skip)]
    kind: PhantomData<fn() -> K>,
}

impl<K: Resource<DynamicType = ()>> Resource for Raw<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind(_: &()) -> std::borrow::Cow<'_, str> {
        K::kind(&())
    }

    fn group(_: &()) -> std::borrow::Cow<'_, str> {
        K::group(&())
    }

    fn version(_: &()) -> std::borrow::Cow<'_, str> {
        K::version(&())
    }

    fn plural(_: &()) -> std::borrow::Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// An object as far as it can be read.
#[derive(Clone, Debug)]
pub enum Stored<K: HasStatus> {
    /// Without its managed fields; its status is there so that nothing is written twice.
    Readable(Arc<K>),
    /// Not an object of the kind as this version knows it.
    Unreadable(Arc<Unreadable<K::Status>>),
}

/// An object that can't be read.
#[derive(Clone, Debug)]
pub struct Unreadable<S> {
    /// Its metadata, without managed fields.
    pub metadata: ObjectMeta,
    /// Its `spec` as it is stored.
    pub spec: Value,
    /// What is wrong with it, by field.
    pub problem: String,
    status: Option<S>,
}

impl<K> Stored<K>
where
    K: Resource<DynamicType = ()> + HasSpec + HasStatus + DeserializeOwned,
    K::Spec: PartialEq,
    K::Status: DeserializeOwned,
{
    /// Reads an object; None if it has no name, which no API server sends.
    pub fn read(raw: Raw<K>) -> Option<(ObjectRef, Self)> {
        let Raw { mut metadata, mut fields, .. } = raw;
        metadata.managed_fields = None;
        let key = ObjectRef::new(metadata.namespace.clone()?, metadata.name.clone()?);
        let status = fields.remove("status").unwrap_or_default();
        fields.insert("metadata".to_owned(), json!(metadata));
        let mut document = Value::Object(fields);
        let stored = match K::deserialize(&document) {
            Ok(mut object) => {
                // A status of another version is as good as none: it is written anew.
                *object.status_mut() = serde_json::from_value(status).ok();
                Self::Readable(Arc::new(object))
            }
            Err(error) => {
                let problem = problem(&document, &error);
                warn!(kind = &*K::kind(&()), object = %key, problem, "An object can't be read; it counts as invalid.");
                let (spec, status) = (document["spec"].take(), serde_json::from_value(status).ok());
                Self::Unreadable(Arc::new(Unreadable { metadata, spec, problem, status }))
            }
        };
        Some((key, stored))
    }

    /// The object, if it can be read.
    pub fn object(&self) -> Option<&Arc<K>> {
        match self {
            Self::Readable(object) => Some(object),
            Self::Unreadable(_) => None,
        }
    }

    /// What is wrong, if it can't be read.
    pub fn unreadable(&self) -> Option<&Arc<Unreadable<K::Status>>> {
        match self {
            Self::Readable(_) => None,
            Self::Unreadable(unreadable) => Some(unreadable),
        }
    }

    /// Its status.
    pub fn status(&self) -> Option<&K::Status> {
        match self {
            Self::Readable(object) => object.status(),
            Self::Unreadable(unreadable) => unreadable.status.as_ref(),
        }
    }

    /// Counts the changes of its spec.
    pub fn generation(&self) -> Option<i64> {
        self.metadata().generation
    }

    /// What it is called.
    pub fn key(&self) -> ObjectRef {
        let ObjectMeta { namespace, name, .. } = self.metadata();
        ObjectRef::new(namespace.clone().unwrap_or_default(), name.clone().unwrap_or_default())
    }

    fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Readable(object) => object.meta(),
            Self::Unreadable(unreadable) => &unreadable.metadata,
        }
    }

    /// Whether both are one object that says the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Readable(one), Self::Readable(other)) => one.meta().uid == other.meta().uid && one.spec() == other.spec(),
            (Self::Unreadable(one), Self::Unreadable(other)) => one.metadata.uid == other.metadata.uid && one.spec == other.spec,
            _ => false,
        }
    }
}

/// In the words of `fetchr validate`, which name the field; else in those of the reader.
fn problem(document: &Value, error: &serde_json::Error) -> String {
    let problems = validate_value(document);
    if problems.is_empty() { error.to_string() } else { problems.to_string() }
}
