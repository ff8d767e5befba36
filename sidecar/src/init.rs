//! The redirect rules of a pod: what `fetchr-init` does.
//!
//! [`Settings`] become [`Rules`], a backend sets them in one transaction per kernel table, reads them back and compares.
//! nftables is asked first; where the kernel can't do it, iptables-legacy is. Nothing here opens a socket or needs a shell.

mod iptables;
mod nft;
mod rules;
mod settings;
mod tool;

use std::fmt;

use clap::ValueEnum;

pub use rules::{Rule, Rules};
pub use settings::{Nets, Ports, Settings};
pub use tool::ToolError;

/// Which tool of the kernel holds the rules.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Backend {
    /// nftables, and iptables-legacy where that fails.
    Auto,
    /// One table `inet fetchr`.
    Nftables,
    /// Chains `FETCHR_INBOUND` and `FETCHR_OUTBOUND` in the nat tables of iptables-legacy and ip6tables-legacy.
    Iptables,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables-legacy",
        })
    }
}

/// Why a pod's rules are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container lacks a capability.
    #[error(
        "the container lacks the capability {0}: give fetchr-init `capabilities: {{add: [NET_ADMIN, NET_RAW]}}` and `runAsUser: 0`"
    )]
    Capability(&'static str),
    /// A tool failed.
    #[error("{0}{hint}", hint = tool::hint(.0))]
    Tool(#[from] ToolError),
    /// A tool's answer could not be read.
    #[error("cannot read the rules back from {backend}: {problem}")]
    Unreadable {
        /// Who answered.
        backend: Backend,
        /// What is wrong with it.
        problem: String,
    },
    /// What the kernel holds is not what was set.
    #[error("the kernel holds other rules than {backend} was told to set: {difference}")]
    Differs {
        /// Who set them.
        backend: Backend,
        /// The first rules that differ.
        difference: String,
    },
    /// No backend works here.
    #[error("no way to set redirect rules in this pod\n  nftables: {nftables}\n  iptables-legacy: {iptables}")]
    NoBackend {
        /// Why nftables does not.
        nftables: Box<Error>,
        /// Why iptables-legacy does not.
        iptables: Box<Error>,
    },
}

/// Sets the rules, replacing those of an earlier call, and checks that the kernel holds them. Returns the backend that does.
pub async fn set(rules: &Rules, backend: Backend) -> Result<Backend, Error> {
    tool::require_capability("NET_ADMIN")?;
    match backend {
        Backend::Nftables => nft::set(rules).await.map(|()| Backend::Nftables),
        Backend::Iptables => iptables::set(rules).await.map(|()| Backend::Iptables),
        Backend::Auto => match nft::set(rules).await {
            Ok(()) => Ok(Backend::Nftables),
            // Nothing was set, so nothing is in the way of the other one.
            Err(nftables @ Error::Tool(_)) => match iptables::set(rules).await {
                Ok(()) => Ok(Backend::Iptables),
                Err(iptables) => Err(Error::NoBackend { nftables: nftables.into(), iptables: iptables.into() }),
            },
            Err(error) => Err(error),
        },
    }
}

/// Removes what [`set`] made, with either backend; what is not there is no error.
pub async fn cleanup() -> Result<(), Error> {
    tool::require_capability("NET_ADMIN")?;
    nft::cleanup().await?;
    iptables::cleanup().await
}

/// What [`set`] would hand to the backend in an empty network namespace.
pub fn print(rules: &Rules, backend: Backend) -> String {
    match backend {
        Backend::Auto | Backend::Nftables => nft::ruleset(rules),
        Backend::Iptables => iptables::print(rules),
    }
}
