//! The scripts against their models, the models against what limits promise, and the store against real servers.

mod bench;
mod cases;
mod faults;
mod play;
mod scripts;
mod store;
mod world;
