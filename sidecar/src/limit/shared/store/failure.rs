//! Why nothing was decided.

use crate::redis::Failed;

/// Why a count could not be asked. What follows is the policy's to say; it is never a denial of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Failure {
    /// There is no connection to who has the count.
    Away,
    /// The server follows another one (`READONLY`), which it may have lost (`MASTERDOWN`): another is looked for.
    Replica,
    /// The server reads what it kept (`LOADING`).
    Loading,
    /// The server takes no writes, for it can't keep them (`MISCONF`), or nobody else has them (`NOREPLICAS`).
    Unsafe,
    /// The cluster does not serve the slot now (`CLUSTERDOWN`, `TRYAGAIN`), or by a node that is not known (`MOVED`, `ASK`).
    Cluster,
    /// No answer came in time, or there was none left.
    Late,
    /// The server has no memory for more (`OOM`).
    Full,
    /// The server does not allow it to us (`NOPERM`, `NOAUTH`), or lets us not in (`WRONGPASS`).
    Forbidden,
    /// There is no connection, for the server shows a certificate that is not accepted.
    Untrusted,
    /// The server does not know the script.
    Unknown,
    /// The windows of a calendar were not of the server's time, which is known by now ([`Store::now`](super::Store::now)): they are to be
    /// computed again.
    Window,
    /// It was answered by another error, or by what is no answer, or the connection broke.
    Error,
}

impl Failure {
    /// By what the server says.
    pub(super) fn of_code(code: &str) -> Self {
        match code {
            "NOSCRIPT" => Self::Unknown,
            "OOM" => Self::Full,
            "NOPERM" | "NOAUTH" | "WRONGPASS" => Self::Forbidden,
            "READONLY" | "MASTERDOWN" => Self::Replica,
            "LOADING" => Self::Loading,
            "MISCONF" | "NOREPLICAS" => Self::Unsafe,
            "CLUSTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" => Self::Cluster,
            "BUSY" => Self::Late,
            _ => Self::Error,
        }
    }

    /// What metrics call it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Replica => "replica",
            Self::Loading => "loading",
            Self::Unsafe => "unsafe",
            Self::Cluster => "cluster",
            Self::Late => "late",
            Self::Full => "full",
            Self::Forbidden => "forbidden",
            Self::Untrusted => "tls",
            Self::Unknown | Self::Error => "error",
            Self::Window => "window",
        }
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Away => Self::Away,
            Failed::Barred => Self::Forbidden,
            Failed::Untrusted => Self::Untrusted,
            Failed::Late => Self::Late,
            Failed::Error => Self::Error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_tells_whose_fault_it_is() {
        for (code, failure) in [
            ("OOM", Failure::Full),
            ("NOPERM", Failure::Forbidden),
            ("WRONGPASS", Failure::Forbidden),
            ("READONLY", Failure::Replica),
            ("MASTERDOWN", Failure::Replica),
            ("LOADING", Failure::Loading),
            ("MISCONF", Failure::Unsafe),
            ("CLUSTERDOWN", Failure::Cluster),
            ("MOVED", Failure::Cluster),
            ("BUSY", Failure::Late),
            ("NOSCRIPT", Failure::Unknown),
            ("WRONGTYPE", Failure::Error),
            ("ERR", Failure::Error),
        ] {
            assert_eq!(Failure::of_code(code), failure, "{code}");
        }
    }
}
