//! The rules, apart from the tool that sets them.

use std::fmt;

use ipnet::IpNet;

use super::Settings;

/// What happens to new TCP connections; the first rule that matches decides.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rules {
    /// Connections that come to the pod.
    pub inbound: Vec<Rule>,
    /// Connections that a process of the pod opens.
    pub outbound: Vec<Rule>,
}

/// One step of a chain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rule {
    /// Within the pod, also to its own address: left alone.
    Loopback,
    /// Of this user: left alone.
    User(u32),
    /// To this network: left alone.
    Net(IpNet),
    /// To this TCP port: redirected.
    Redirect {
        /// Destination port.
        port: u16,
        /// Port of the sidecar.
        to: u16,
    },
}

impl Rules {
    /// The rules for these settings. A direction without ports has none.
    ///
    /// The sidecar's own connections are let through before all others, so what it sends to the application on loopback or on
    /// the pod's address never comes back to it.
    pub fn new(settings: &Settings) -> Self {
        let redirects = |ports: Vec<u16>, to| ports.into_iter().map(move |port| Rule::Redirect { port, to });
        let inbound = settings.intercepted_inbound();
        let outbound = settings.outbound_ports.0.iter().copied().collect::<Vec<_>>();
        let mut rules = Self::default();
        if !inbound.is_empty() {
            rules.inbound = [Rule::Loopback].into_iter().chain(redirects(inbound, settings.inbound_port)).collect();
        }
        if !outbound.is_empty() {
            let exempt = [Rule::User(settings.proxy_uid), Rule::Loopback].into_iter();
            let nets = settings.skip_cidrs.0.iter().copied().map(Rule::Net);
            rules.outbound = exempt.chain(nets).chain(redirects(outbound, settings.outbound_port)).collect();
        }
        rules
    }

    /// The same rules without networks of the other IP version.
    pub fn for_version(&self, v6: bool) -> Self {
        let keep = |rule: &&Rule| !matches!(rule, Rule::Net(net) if matches!(net, IpNet::V6(_)) != v6);
        let of = |rules: &[Rule]| rules.iter().filter(keep).copied().collect();
        Self { inbound: of(&self.inbound), outbound: of(&self.outbound) }
    }

    /// The first rule that is not as in `self`, for people; `None` if there is none.
    pub fn difference(&self, found: &Self) -> Option<String> {
        let chains = [("inbound", &self.inbound, &found.inbound), ("outbound", &self.outbound, &found.outbound)];
        chains.into_iter().find_map(|(name, wanted, found)| {
            let at = (0..wanted.len().max(found.len())).find(|at| wanted.get(*at) != found.get(*at))?;
            let show = |rule: Option<&Rule>| rule.map_or_else(|| "nothing".to_owned(), Rule::to_string);
            Some(format!("{name} rule {}: wanted {}, found {}", at + 1, show(wanted.get(at)), show(found.get(at))))
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => f.write_str("`leave loopback alone`"),
            Self::User(uid) => write!(f, "`leave user {uid} alone`"),
            Self::Net(net) => write!(f, "`leave {net} alone`"),
            Self::Redirect { port, to } => write!(f, "`redirect port {port} to {to}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_and_own_ports_are_not_redirected() {
        let settings = Settings {
            inbound_ports: "8080,4610,4611,4612,4620,4621,9000".parse().unwrap(),
            skip_inbound_ports: "9000".parse().unwrap(),
            ..Settings::for_test()
        };
        let rules = Rules::new(&settings);
        assert_eq!(rules.inbound, [Rule::Loopback, Rule::Redirect { port: 8080, to: 4610 }]);
    }

    #[test]
    fn own_user_is_exempt_before_anything_else() {
        let settings = Settings { outbound_ports: "80".parse().unwrap(), ..Settings::for_test() };
        assert_eq!(Rules::new(&settings).outbound[0], Rule::User(2733));
    }

    #[test]
    fn direction_without_ports_has_no_rules() {
        let settings = Settings { skip_cidrs: "10.0.0.0/8".parse().unwrap(), ..Settings::for_test() };
        assert_eq!(Rules::new(&settings), Rules::default());
    }

    #[test]
    fn difference_names_the_first_rule_that_is_off() {
        let settings = Settings { outbound_ports: "80,81".parse().unwrap(), ..Settings::for_test() };
        let wanted = Rules::new(&settings);
        assert_eq!(wanted.difference(&wanted), None);
        let mut found = wanted.clone();
        found.outbound.pop();
        let difference = wanted.difference(&found).unwrap();
        assert_eq!(difference, "outbound rule 4: wanted `redirect port 81 to 4611`, found nothing");
    }
}
