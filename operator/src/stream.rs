//! The gRPC server that sidecars open their streams to.
