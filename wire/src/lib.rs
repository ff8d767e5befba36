//! What operator and sidecar say to each other: the gRPC stream, the signed cold-start plan, and the names that injection
//! writes and the sidecar reads.

pub mod env;
pub mod service;
pub mod signed;
pub mod speaker;

/// The stream's messages and its client and server, generated from `proto/fetchr.proto`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("fetchr.v1");
}

/// The health-checking protocol of gRPC, which probes of applications speak, generated from `proto/health.proto`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}
