//! Admission: `/inject` and `/validate`.

mod cluster;

pub use cluster::Cluster;
