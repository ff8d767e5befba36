//! What operator and sidecar say to each other: the gRPC stream, the signed cold-start plan, and the names that injection
//! writes and the sidecar reads.

pub mod env;

/// The stream's messages and its client and server, generated from `proto/fetchr.proto`.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod v1 {
    tonic::include_proto!("fetchr.v1");
}
