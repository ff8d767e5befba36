//! A real Kubernetes on one machine, peers that misbehave on request, and what tests need to drive both.
//!
//! - [`apiserver`]: an API server without a node, for tests of what the API accepts and what clients of it do.
//! - [`cluster`]: a whole Kubernetes with one node; [`image`] and [`images`]: what runs on it.
//! - [`soak`]: mixed load for long, with a ledger of every exchange.
//! - [`documented`]: the table of all metrics, held against pages of them.
//! - [`demo`]: the demonstration. [`figures`]: what fetchr takes and how soon it acts, measured; [`report`]: tables of figures.
//! - [`loopback`]: fetchr without a node, with relays wherever a network can break. [`faults`]: what happens when it does, measured.
//! - [`testbed`]: the cluster that all tests share, with fetchr ([`install`]) and a [`namespace`] for each test.
//! - [`origin`]: the HTTP application in its pods, and a client that sends load.
//! - [`stores`]: Redis and S3 in pods.
//! - [`testkit`]: a relay that breaks the network, and peers that follow a script to the byte.
//! - [`stream`]: a sidecar that is nothing but its stream to an operator.
//! - [`wait`]: waiting with a deadline.
//! - [`process`], [`pki`], [`tools`]: what the others are made of.

pub mod apiserver;
pub mod cluster;
pub mod demo;
pub mod documented;
pub mod faults;
pub mod figures;
pub mod image;
pub mod images;
pub mod install;
pub mod loopback;
pub mod namespace;
pub mod origin;
pub mod pki;
pub mod process;
pub mod report;
pub mod s3;
pub mod soak;
pub mod stores;
pub mod stream;
pub mod testbed;
pub mod testkit;
pub mod tools;
pub mod wait;
