//! What the cluster looks like now: one file per kind, plain structs with `apply`, `delete`, `reset`.
