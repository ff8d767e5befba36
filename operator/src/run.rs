//! Wiring: one supervised task per job, one way to shut down.
