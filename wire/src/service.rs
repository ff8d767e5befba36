//! How hosts name Services: `carts`, `carts.shop`, `carts.shop.svc`, `carts.shop.svc.cluster.local`.

/// The feature of sidecars that take the message `Services`.
pub const FEATURE: &str = "services";

/// The Services that a host or a pattern of hosts names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Named<'a> {
    /// One.
    One {
        /// Its namespace.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// Those of a namespace: `*.shop`.
    Namespace(&'a str),
    /// All: `*.svc.cluster.local`.
    All,
}

/// Namespace and name of the Service that a host would be, asked for by a pod of the namespace `own`. Whether there is one, it does not say.
pub fn of_host<'a>(host: &'a str, own: &'a str, cluster_domain: &str) -> Option<(&'a str, &'a str)> {
    let (name, namespace) = split(host.strip_suffix('.').unwrap_or(host), cluster_domain)?;
    Some((namespace.unwrap_or(own), name))
}

/// The Services that a pattern of hosts would match, asked for by pods of the namespace `own`.
pub fn of_pattern<'a>(pattern: &'a str, own: &'a str, cluster_domain: &str) -> Option<Named<'a>> {
    let Some(suffix) = pattern.strip_prefix("*.") else {
        return of_host(pattern, own, cluster_domain).map(|(namespace, name)| Named::One { namespace, name });
    };
    // `*.cluster.local` matches the longest spelling of all of them.
    let ends_all = |whole: &str| whole == suffix || whole.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'));
    if suffix == "svc" || suffix.strip_prefix("svc.") == Some(cluster_domain) || ends_all(cluster_domain) {
        return Some(Named::All);
    }
    match split(suffix, cluster_domain)? {
        (namespace, None | Some("svc")) => Some(Named::Namespace(namespace)),
        _ => None,
    }
}

/// The first label, and the second if there is one, of a host with no more labels than a Service has.
fn split<'a>(host: &'a str, cluster_domain: &str) -> Option<(&'a str, Option<&'a str>)> {
    let in_cluster = host.strip_suffix(cluster_domain).and_then(|rest| rest.strip_suffix('.'));
    let short = in_cluster.filter(|rest| rest.ends_with(".svc")).unwrap_or(host);
    let mut labels = short.split('.');
    let (first, second) = (labels.next().filter(|label| !label.is_empty())?, labels.next());
    match (labels.next(), labels.next()) {
        (None | Some("svc"), None) if second != Some("") => Some((first, second)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_a_service_in_four_spellings() {
        for (host, expected) in [
            ("carts", Some(("front", "carts"))),
            ("carts.shop", Some(("shop", "carts"))),
            ("carts.shop.svc", Some(("shop", "carts"))),
            ("carts.shop.svc.cluster.local", Some(("shop", "carts"))),
            ("carts.shop.svc.cluster.local.", Some(("shop", "carts"))),
            ("carts.shop.svc.other.domain", None),
            ("0.carts.shop.svc", None),
            ("carts.shop.svc.cluster", None),
            ("api.shop.example", None),
            ("", None),
            (".shop", None),
            ("carts.", Some(("front", "carts"))),
            ("carts..", None),
        ] {
            assert_eq!(of_host(host, "front", "cluster.local"), expected, "{host}");
        }
    }

    #[test]
    fn pattern_names_one_service_those_of_a_namespace_or_all() {
        for (pattern, expected) in [
            ("carts.shop", Some(Named::One { namespace: "shop", name: "carts" })),
            ("*.shop", Some(Named::Namespace("shop"))),
            ("*.shop.svc", Some(Named::Namespace("shop"))),
            ("*.shop.svc.cluster.local", Some(Named::Namespace("shop"))),
            ("*.svc", Some(Named::All)),
            ("*.svc.cluster.local", Some(Named::All)),
            ("*.cluster.local", Some(Named::All)),
            ("*.local", Some(Named::All)),
            ("*.shop.example.org", None),
            ("*.example.org", None),
            ("*.carts.shop.svc", None),
        ] {
            assert_eq!(of_pattern(pattern, "front", "cluster.local"), expected, "{pattern}");
        }
    }
}
