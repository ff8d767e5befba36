//! Rules as a table of nftables. The family `inet` holds for IPv4 and IPv6, also where one of them is absent.

use std::{fmt::Write as _, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::Value;

use super::{Backend, Error, Rule, Rules, tool};

const NFT: &str = "/usr/sbin/nft";

/// Sets the table in one transaction and compares it with what the kernel then holds.
pub(super) async fn set(rules: &Rules) -> Result<(), Error> {
    tool::run(NFT, &["-f", "-"], &ruleset(rules)).await?;
    let listing = tool::run(NFT, &["-j", "list", "table", "inet", "fetchr"], "").await?;
    let found = parse(&listing).map_err(|problem| Error::Unreadable { backend: Backend::Nftables, problem })?;
    match rules.difference(&found) {
        None => Ok(()),
        Some(difference) => Err(Error::Differs { backend: Backend::Nftables, difference }),
    }
}

/// Removes the table. A kernel or an image without nftables has none.
pub(super) async fn cleanup() -> Result<(), Error> {
    let listing = match tool::run(NFT, &["-j", "list", "tables"], "").await {
        Ok(listing) => listing,
        Err(error) if tool::is_absent(&error) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if has_table(&listing) {
        tool::run(NFT, &["delete", "table", "inet", "fetchr"], "").await?;
    }
    Ok(())
}

/// The transaction: the first two lines make sure that there is a table to delete, so that the third starts from nothing.
pub(super) fn ruleset(rules: &Rules) -> String {
    let inbound = chain("inbound", "prerouting priority dstnat", &rules.inbound);
    let outbound = chain("outbound", "output priority -100", &rules.outbound);
    format!("table inet fetchr\ndelete table inet fetchr\ntable inet fetchr {{\n{inbound}{outbound}}}\n")
}

fn chain(name: &str, hook: &str, rules: &[Rule]) -> String {
    if rules.is_empty() {
        return String::new();
    }
    let interface = if name == "inbound" { "iif" } else { "oif" };
    let mut text = format!("\tchain {name} {{\n\t\ttype nat hook {hook}; policy accept;\n");
    let mut line = |statement: String| writeln!(text, "\t\t{statement}").expect("a String takes every write");
    for rule in rules {
        match rule {
            Rule::Loopback => line(format!("{interface} \"lo\" return")),
            Rule::User(uid) => line(format!("meta skuid {uid} return")),
            Rule::Net(net) if net.prefix_len() == 0 => line(format!("meta nfproto {} return", version(net))),
            Rule::Net(net @ IpNet::V4(_)) => line(format!("ip daddr {net} return")),
            Rule::Net(net @ IpNet::V6(_)) => line(format!("ip6 daddr {net} return")),
            Rule::Redirect { port, to } => line(format!("tcp dport {port} redirect to :{to}")),
        }
    }
    text + "\t}\n"
}

fn version(net: &IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "ipv4",
        IpNet::V6(_) => "ipv6",
    }
}

fn has_table(listing: &str) -> bool {
    let listing: Value = serde_json::from_str(listing).unwrap_or_default();
    objects(&listing, "table").any(|table| table["family"] == "inet" && table["name"] == "fetchr")
}

/// Reads `nft -j list table inet fetchr`.
fn parse(listing: &str) -> Result<Rules, String> {
    let listing: Value = serde_json::from_str(listing).map_err(|error| error.to_string())?;
    let hooked = |name: &str, hook: &str| {
        objects(&listing, "chain").any(|chain| chain["name"] == name && chain["type"] == "nat" && chain["hook"] == hook)
    };
    let mut rules = Rules::default();
    for rule in objects(&listing, "rule") {
        let chain = match rule["chain"].as_str() {
            Some("inbound") if hooked("inbound", "prerouting") => &mut rules.inbound,
            Some("outbound") if hooked("outbound", "output") => &mut rules.outbound,
            _ => return Err(format!("a rule outside of our chains: {rule}")),
        };
        chain.push(parse_rule(&rule["expr"]).ok_or_else(|| format!("a rule that is not ours: {rule}"))?);
    }
    Ok(rules)
}

fn objects<'a>(listing: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    listing["nftables"].as_array().into_iter().flatten().filter_map(move |object| object.get(kind))
}

fn parse_rule(expressions: &Value) -> Option<Rule> {
    let [matched, action] = expressions.as_array()?.as_slice() else { return None };
    let (left, right) = (&matched["match"]["left"], &matched["match"]["right"]);
    if matched["match"]["op"] != "==" {
        return None;
    }
    if let Some(to) = action.get("redirect") {
        let port = (left["payload"]["protocol"] == "tcp" && left["payload"]["field"] == "dport").then_some(right)?;
        return Some(Rule::Redirect { port: number(port)?, to: number(&to["port"])? });
    }
    action.get("return")?;
    match left["meta"]["key"].as_str() {
        Some("iif" | "oif") => (right == "lo").then_some(Rule::Loopback),
        Some("skuid") => number(right).map(Rule::User),
        Some("nfproto") => match right.as_str()? {
            "ipv4" => Some(Rule::Net(Ipv4Net::default().into())),
            "ipv6" => Some(Rule::Net(Ipv6Net::default().into())),
            _ => None,
        },
        Some(_) => None,
        None if left["payload"]["field"] == "daddr" => parse_net(right).map(Rule::Net),
        None => None,
    }
}

fn number<T: TryFrom<u64>>(value: &Value) -> Option<T> {
    T::try_from(value.as_u64()?).ok()
}

fn parse_net(value: &Value) -> Option<IpNet> {
    let address = |value: &Value| value.as_str()?.parse::<IpAddr>().ok();
    match value.get("prefix") {
        Some(prefix) => IpNet::new(address(&prefix["addr"])?, number(&prefix["len"])?).ok(),
        None => address(value).map(IpNet::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::Settings;

    #[test]
    fn ruleset_replaces_the_table_whole() {
        let settings = Settings {
            inbound_ports: "8080,9000".parse().unwrap(),
            outbound_ports: "80".parse().unwrap(),
            skip_cidrs: "10.0.0.0/8,192.0.2.1,fd00::/8".parse().unwrap(),
            ..Settings::for_test()
        };
        let expected = r#"table inet fetchr
delete table inet fetchr
table inet fetchr {
	chain inbound {
		type nat hook prerouting priority dstnat; policy accept;
		iif "lo" return
		tcp dport 8080 redirect to :4610
		tcp dport 9000 redirect to :4610
	}
	chain outbound {
		type nat hook output priority -100; policy accept;
		meta skuid 2733 return
		oif "lo" return
		ip daddr 10.0.0.0/8 return
		ip daddr 192.0.2.1/32 return
		ip6 daddr fd00::/8 return
		tcp dport 80 redirect to :4611
	}
}
"#;
        assert_eq!(ruleset(&Rules::new(&settings)), expected);
    }

    #[test]
    fn whole_address_space_is_matched_by_version() {
        let settings = Settings {
            outbound_ports: "80".parse().unwrap(),
            skip_cidrs: "0.0.0.0/0,::/0".parse().unwrap(),
            ..Settings::for_test()
        };
        let text = ruleset(&Rules::new(&settings));
        assert!(text.contains("\t\tmeta nfproto ipv4 return\n\t\tmeta nfproto ipv6 return\n"), "{text}");
    }

    #[test]
    fn nothing_to_redirect_is_an_empty_table() {
        let text = ruleset(&Rules::default());
        assert_eq!(text, "table inet fetchr\ndelete table inet fetchr\ntable inet fetchr {\n}\n");
    }

    #[test]
    fn rule_of_somebody_else_is_refused() {
        let listing = r#"{"nftables": [
            {"chain": {"name": "inbound", "type": "nat", "hook": "prerouting"}},
            {"rule": {"chain": "inbound", "expr": [{"counter": {}}, {"drop": null}]}}]}"#;
        let problem = parse(listing).unwrap_err();
        assert!(problem.starts_with("a rule that is not ours: "), "{problem}");
    }

    #[test]
    fn chain_without_its_hook_does_not_count() {
        let listing = r#"{"nftables": [
            {"chain": {"name": "inbound", "type": "nat", "hook": "input"}},
            {"rule": {"chain": "inbound", "expr": [{"match": {"op": "==", "left": {"meta": {"key": "iif"}}, "right": "lo"}},
             {"return": null}]}}]}"#;
        assert!(parse(listing).is_err());
    }

    #[test]
    fn negated_match_is_not_taken_for_ours() {
        let listing = r#"{"nftables": [
            {"chain": {"name": "inbound", "type": "nat", "hook": "prerouting"}},
            {"rule": {"chain": "inbound", "expr": [{"match": {"op": "!=", "left": {"meta": {"key": "iif"}}, "right": "lo"}},
             {"return": null}]}}]}"#;
        assert!(parse(listing).is_err());
    }
}
