//! What admission needs to know of the cluster.

use std::{collections::BTreeMap, sync::Arc};

use crds::FetchrProxy;

/// The index, as far as admission reads it. What is not in there yet is asked of the API server.
pub trait Cluster: Send + Sync + 'static {
    /// Labels of a namespace; None if the index does not know it.
    fn namespace_labels(&self, namespace: &str) -> Option<BTreeMap<String, String>>;

    /// FetchrProxies of a namespace, in any order.
    fn proxies(&self, namespace: &str) -> Vec<Arc<FetchrProxy>>;
}
