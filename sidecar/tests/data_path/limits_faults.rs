//! What clients see of limits that pods count together, and how exact these are, while their Redis fails: `cargo test -p fetchr-sidecar
//! --test data_path limits_faults -- --include-ignored --nocapture` prints the figures of `docs/limits.md`.

mod clients;
mod doors;
mod hostile;
mod network;
mod primaries;
