//! The index -> plans and verdicts, coalesced; the thinking is in `crds::plan`.
