//! Which of the fields that a proxy looks at a head has: one look at its names, instead of a look-up for each field that most
//! heads lack.

use http::{HeaderMap, HeaderName, header};

use super::OWN_PREFIX;

/// A set of fields.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Present(u16);

impl Present {
    pub(crate) const CONNECTION: Self = Self(1);
    pub(crate) const TE: Self = Self(1 << 1);
    pub(crate) const TRANSFER_ENCODING: Self = Self(1 << 2);
    pub(crate) const CONTENT_LENGTH: Self = Self(1 << 3);
    pub(crate) const UPGRADE: Self = Self(1 << 4);
    pub(crate) const EXPECT: Self = Self(1 << 5);
    /// Fields for one hop besides those above.
    pub(crate) const HOP: Self = Self(1 << 6);
    /// Fields that only the sidecar itself may use.
    pub(crate) const OWN: Self = Self(1 << 7);
    pub(crate) const VIA: Self = Self(1 << 8);
    pub(crate) const FORWARDED: Self = Self(1 << 9);
    pub(crate) const COOKIE: Self = Self(1 << 10);
    pub(crate) const CONTENT_TYPE: Self = Self(1 << 11);
    pub(crate) const DATE: Self = Self(1 << 12);

    /// What of these a head has.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        headers.keys().fold(Self::default(), |all, name| all.and(Self::which(name)))
    }

    fn which(name: &HeaderName) -> Self {
        match *name {
            header::CONNECTION => Self::CONNECTION,
            header::TE => Self::TE,
            header::TRANSFER_ENCODING => Self::TRANSFER_ENCODING,
            header::CONTENT_LENGTH => Self::CONTENT_LENGTH,
            header::UPGRADE => Self::UPGRADE,
            header::EXPECT => Self::EXPECT,
            header::VIA => Self::VIA,
            header::FORWARDED => Self::FORWARDED,
            header::COOKIE => Self::COOKIE,
            header::CONTENT_TYPE => Self::CONTENT_TYPE,
            header::DATE => Self::DATE,
            _ => Self::which_by_text(name.as_str()),
        }
    }

    fn which_by_text(name: &str) -> Self {
        match name {
            "keep-alive" | "proxy-connection" | "http2-settings" => Self::HOP,
            _ if name.starts_with(OWN_PREFIX) => Self::OWN,
            _ if name.starts_with("x-forwarded-") => Self::FORWARDED,
            _ => Self::default(),
        }
    }

    /// These and those.
    pub(crate) const fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Whether any of those is there.
    pub(crate) const fn any(self, of: Self) -> bool {
        self.0 & of.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_told_by_their_names() {
        let headers = |names: &[&str]| -> HeaderMap {
            names.iter().map(|name| (name.parse::<HeaderName>().unwrap(), "x".parse().unwrap())).collect()
        };
        for (name, expected) in [
            ("TE", Present::TE),
            ("Transfer-Encoding", Present::TRANSFER_ENCODING),
            ("Keep-Alive", Present::HOP),
            ("X-Forwarded-Proto", Present::FORWARDED),
            ("x-fetchr-a", Present::OWN),
            ("x-other", Present::default()),
            ("Host", Present::default()),
        ] {
            assert_eq!(Present::of(&headers(&[name])), expected, "{name}");
        }
        let both = Present::of(&headers(&["Via", "a", "Upgrade"]));
        assert_eq!(both, Present::VIA.and(Present::UPGRADE));
        assert!(both.any(Present::VIA) && !both.any(Present::TE));
    }
}
