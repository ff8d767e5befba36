//! The scripts against their models, the models against what limits promise, and the store against real servers.

mod bench;
mod cases;
mod clock;
mod faults;
mod many;
mod play;
mod scripts;
mod store;
mod world;
