//! Rules as chains of iptables-legacy, for kernels without nftables: one transaction for each IP version.

use std::{fmt::Write as _, fs};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Backend, Error, Rule, Rules, tool};

/// The one program behind iptables-legacy, ip6tables-legacy and their -save and -restore.
const XTABLES: &str = "/usr/sbin/xtables-legacy-multi";

/// A chain of ours, and the built-in chain that jumps to it.
struct Chain {
    name: &'static str,
    from: &'static str,
    interface: &'static str,
}

const INBOUND: Chain = Chain { name: "FETCHR_INBOUND", from: "PREROUTING", interface: "-i" };
const OUTBOUND: Chain = Chain { name: "FETCHR_OUTBOUND", from: "OUTPUT", interface: "-o" };

/// An IP version, and how its tools and tables are called.
#[derive(Clone, Copy)]
struct Version {
    v6: bool,
    save: &'static str,
    restore: &'static str,
    tables: &'static str,
}

const V4: Version =
    Version { v6: false, save: "iptables-save", restore: "iptables-restore", tables: "/proc/net/ip_tables_names" };
const V6: Version =
    Version { v6: true, save: "ip6tables-save", restore: "ip6tables-restore", tables: "/proc/net/ip6_tables_names" };

/// Sets the chains of both IP versions and compares them with what the kernel then holds.
pub(super) async fn set(rules: &Rules) -> Result<(), Error> {
    tool::require_capability("NET_RAW")?;
    set_version(rules, V4).await?;
    match set_version(rules, V6).await {
        // A kernel without ip6tables is no matter where nothing is reached by IPv6.
        Err(_) if !reachable_by_ipv6(&fs::read_to_string("/proc/net/if_inet6").unwrap_or_default()) => Ok(()),
        result => result,
    }
}

/// Removes the chains. The kernel's list of tables is asked first, since iptables would make the nat table only to look at it.
pub(super) async fn cleanup() -> Result<(), Error> {
    for version in [V4, V6] {
        let tables = fs::read_to_string(version.tables).unwrap_or_default();
        if !tables.lines().any(|table| table == "nat") {
            continue;
        }
        let saved = save(version).await?;
        restore(version, &transaction(&removal(&saved))).await?;
    }
    Ok(())
}

/// The transactions for an empty network namespace.
pub(super) fn print(rules: &Rules) -> String {
    let of = |version: Version| {
        let text = transaction(&addition(&rules.for_version(version.v6)));
        format!("# {}\n{text}", version.restore)
    };
    of(V4) + &of(V6)
}

async fn set_version(rules: &Rules, version: Version) -> Result<(), Error> {
    let rules = rules.for_version(version.v6);
    let saved = save(version).await?;
    restore(version, &transaction(&(removal(&saved) + &addition(&rules)))).await?;
    let found =
        parse(&save(version).await?, version).map_err(|problem| Error::Unreadable { backend: Backend::Iptables, problem })?;
    match rules.difference(&found) {
        None => Ok(()),
        Some(difference) => Err(Error::Differs { backend: Backend::Iptables, difference }),
    }
}

async fn save(version: Version) -> Result<String, Error> {
    Ok(tool::run(XTABLES, &[version.save, "-t", "nat"], "").await?)
}

async fn restore(version: Version, text: &str) -> Result<(), Error> {
    tool::run(XTABLES, &[version.restore, "--wait", "5", "--noflush"], text).await?;
    Ok(())
}

fn transaction(commands: &str) -> String {
    format!("*nat\n{commands}COMMIT\n")
}

/// Commands that remove our chains and every jump to them, as far as `iptables-save` shows them.
fn removal(saved: &str) -> String {
    let mut commands = String::new();
    for chain in [INBOUND, OUTBOUND] {
        let jump = chain.jump();
        let jumps = saved.lines().filter(|line| **line == jump).count();
        commands += &format!("{}\n", jump.replacen("-A", "-D", 1)).repeat(jumps);
        if saved.lines().any(|line| line.starts_with(&format!(":{} ", chain.name))) {
            commands += &format!("-F {0}\n-X {0}\n", chain.name);
        }
    }
    commands
}

/// Commands that make our chains, in the words of `iptables-save`.
fn addition(rules: &Rules) -> String {
    chain_addition(&INBOUND, &rules.inbound) + &chain_addition(&OUTBOUND, &rules.outbound)
}

fn chain_addition(chain: &Chain, rules: &[Rule]) -> String {
    if rules.is_empty() {
        return String::new();
    }
    let mut commands = format!("-N {}\n", chain.name);
    for rule in rules {
        let end = match rule {
            Rule::Loopback => format!("{} lo -j RETURN", chain.interface),
            Rule::User(uid) => format!("-m owner --uid-owner {uid} -j RETURN"),
            Rule::Net(net) => format!("-d {net} -j RETURN"),
            Rule::Redirect { port, to } => format!("-p tcp -m tcp --dport {port} -j REDIRECT --to-ports {to}"),
        };
        writeln!(commands, "-A {} {end}", chain.name).expect("a String takes every write");
    }
    commands + &chain.jump() + "\n"
}

impl Chain {
    fn jump(&self) -> String {
        format!("-A {} -p tcp -j {}", self.from, self.name)
    }
}

/// Reads `iptables-save -t nat`. Rules of others are not looked at.
fn parse(saved: &str, version: Version) -> Result<Rules, String> {
    let of = |chain: Chain| {
        let prefix = format!("-A {} ", chain.name);
        let lines = saved.lines().filter_map(|line| line.strip_prefix(&prefix));
        let rules = lines
            .map(|line| parse_rule(line, version).ok_or_else(|| format!("a rule that is not ours: {prefix}{line}")))
            .collect::<Result<Vec<_>, _>>()?;
        let jumps = saved.lines().filter(|line| *line == chain.jump()).count();
        match jumps == usize::from(!rules.is_empty()) {
            true => Ok(rules),
            false => Err(format!("{jumps} jumps from {} to {}", chain.from, chain.name)),
        }
    };
    Ok(Rules { inbound: of(INBOUND)?, outbound: of(OUTBOUND)? })
}

fn parse_rule(line: &str, version: Version) -> Option<Rule> {
    match line.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["-i" | "-o", "lo", "-j", "RETURN"] => Some(Rule::Loopback),
        ["-m", "owner", "--uid-owner", uid, "-j", "RETURN"] => uid.parse().ok().map(Rule::User),
        ["-d", net, "-j", "RETURN"] => net.parse().ok().map(Rule::Net),
        // It leaves out a network that holds every address.
        ["-j", "RETURN"] if version.v6 => Some(Rule::Net(Ipv6Net::default().into())),
        ["-j", "RETURN"] => Some(Rule::Net(IpNet::from(Ipv4Net::default()))),
        ["-p", "tcp", "-m", "tcp", "--dport", port, "-j", "REDIRECT", "--to-ports", to] => {
            Some(Rule::Redirect { port: port.parse().ok()?, to: to.parse().ok()? })
        }
        _ => None,
    }
}

/// Whether another machine can reach an IPv6 address of this namespace: one that is neither loopback nor link-local.
/// `if_inet6` has a line for each address; the fourth field is the scope, 00 global.
fn reachable_by_ipv6(if_inet6: &str) -> bool {
    if_inet6.lines().any(|line| line.split_whitespace().nth(3) == Some("00"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::Settings;

    fn rules() -> Rules {
        Rules::new(&Settings {
            inbound_ports: "8080".parse().unwrap(),
            outbound_ports: "80".parse().unwrap(),
            skip_cidrs: "10.0.0.0/8,fd00::/8".parse().unwrap(),
            ..Settings::for_test()
        })
    }

    #[test]
    fn each_version_has_its_own_transaction() {
        let expected = "\
# iptables-restore
*nat
-N FETCHR_INBOUND
-A FETCHR_INBOUND -i lo -j RETURN
-A FETCHR_INBOUND -p tcp -m tcp --dport 8080 -j REDIRECT --to-ports 4610
-A PREROUTING -p tcp -j FETCHR_INBOUND
-N FETCHR_OUTBOUND
-A FETCHR_OUTBOUND -m owner --uid-owner 2733 -j RETURN
-A FETCHR_OUTBOUND -o lo -j RETURN
-A FETCHR_OUTBOUND -d 10.0.0.0/8 -j RETURN
-A FETCHR_OUTBOUND -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 4611
-A OUTPUT -p tcp -j FETCHR_OUTBOUND
COMMIT
# ip6tables-restore
*nat
-N FETCHR_INBOUND
-A FETCHR_INBOUND -i lo -j RETURN
-A FETCHR_INBOUND -p tcp -m tcp --dport 8080 -j REDIRECT --to-ports 4610
-A PREROUTING -p tcp -j FETCHR_INBOUND
-N FETCHR_OUTBOUND
-A FETCHR_OUTBOUND -m owner --uid-owner 2733 -j RETURN
-A FETCHR_OUTBOUND -o lo -j RETURN
-A FETCHR_OUTBOUND -d fd00::/8 -j RETURN
-A FETCHR_OUTBOUND -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 4611
-A OUTPUT -p tcp -j FETCHR_OUTBOUND
COMMIT
";
        assert_eq!(print(&rules()), expected);
    }

    #[test]
    fn removal_takes_every_jump_and_leaves_what_others_made() {
        let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:FETCHR_INBOUND - [0:0]\n:ISTIO - [0:0]\n\
            -A PREROUTING -p tcp -j FETCHR_INBOUND\n-A PREROUTING -p tcp -j FETCHR_INBOUND\n-A PREROUTING -j ISTIO\nCOMMIT\n";
        let expected = "-D PREROUTING -p tcp -j FETCHR_INBOUND\n-D PREROUTING -p tcp -j FETCHR_INBOUND\n\
            -F FETCHR_INBOUND\n-X FETCHR_INBOUND\n";
        assert_eq!(removal(saved), expected);
        assert_eq!(removal("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n"), "");
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        for version in [V4, V6] {
            let wanted = rules().for_version(version.v6);
            assert_eq!(parse(&addition(&wanted), version), Ok(wanted));
        }
    }

    #[test]
    fn chain_that_nothing_jumps_to_is_noticed() {
        let saved = "-A FETCHR_INBOUND -i lo -j RETURN\n";
        assert_eq!(parse(saved, V4), Err("0 jumps from PREROUTING to FETCHR_INBOUND".to_owned()));
    }

    #[test]
    fn rule_of_somebody_else_in_our_chain_is_refused() {
        let problem = parse("-A FETCHR_INBOUND -j ACCEPT\n", V4).unwrap_err();
        assert_eq!(problem, "a rule that is not ours: -A FETCHR_INBOUND -j ACCEPT");
    }

    #[test]
    fn loopback_and_link_local_addresses_do_not_count_as_ipv6() {
        let loopback = "00000000000000000000000000000001 01 80 10 80       lo\n";
        let link_local = "fe80000000000000c85bb3fffe6f3f0b 02 40 20 80     eth0\n";
        let global = "fd000000000000000000000000000001 02 40 00 80     eth0\n";
        assert!(!reachable_by_ipv6(&(loopback.to_owned() + link_local)));
        assert!(reachable_by_ipv6(&(loopback.to_owned() + link_local + global)));
        assert!(!reachable_by_ipv6(""));
    }
}
