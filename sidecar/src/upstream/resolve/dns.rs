//! Asks name servers for one name, as the system's files say: `/etc/hosts` first, then the search list (`search`, `ndots`), A and
//! AAAA at once.

use std::{
    collections::HashMap,
    fmt, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use futures::future::{Either, select};
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RData, RecordType},
    system_conf::parse_resolv_conf,
};
use tokio::time::timeout;

use super::cache::Outcome;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// How often the files are looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How long an address of `/etc/hosts` holds.
const HOSTS_TTL: Duration = Duration::from_secs(5);

/// One question to one server, at most. A lost datagram should cost a request no more than its patience.
const MAX_TRY: Duration = Duration::from_secs(1);

/// How long the addresses of one family wait for those of the other (RFC 8305, section 3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// Whom to ask for the addresses of names.
#[derive(Clone, Debug, Default)]
pub enum NameServers {
    /// Those of `/etc/resolv.conf`, after `/etc/hosts`; both are read again when they change.
    #[default]
    System,
    /// These alone.
    Fixed {
        /// Addresses with ports.
        servers: Vec<SocketAddr>,
        /// Domains that are tried after a name with too few dots.
        search: Vec<String>,
        /// Dots from which on a name is tried as it is first.
        ndots: usize,
    },
}

/// Looks names up, one question at a time, without memory.
pub(super) struct Dns {
    whom: NameServers,
    /// What the files said, and when that was last looked at.
    view: Mutex<(Instant, Arc<View>)>,
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dns").field("whom", &self.whom).finish_non_exhaustive()
    }
}

/// What the files said.
struct View {
    read: Stamp,
    hosts: HashMap<String, Arc<[IpAddr]>>,
    search: Vec<Name>,
    ndots: usize,
    resolver: Result<TokioResolver, Arc<str>>,
}

/// Tells one state of the files from another.
type Stamp = [Option<(SystemTime, u64)>; 2];

impl Dns {
    pub(super) fn new(whom: NameServers) -> Self {
        Self { view: Mutex::new((Instant::now(), Arc::new(View::read(&whom)))), whom }
    }

    /// Asks for the addresses of a name, in lower case. Must run on a tokio runtime.
    pub(super) async fn look_up(&self, name: &str) -> Outcome {
        let view = self.view();
        let bare = name.strip_suffix('.').unwrap_or(name);
        if let Some(addresses) = view.static_addresses(bare) {
            return Outcome::Addresses(addresses, HOSTS_TTL);
        }
        let Ok(names) = view.names(name) else { return Outcome::Absent(None) };
        let mut shortest: Option<Duration> = None;
        for name in names {
            match view.ask(&name).await {
                Outcome::Absent(ttl) => shortest = shortest.into_iter().chain(ttl).min(),
                // A name further down the list may be another's: who can't tell of the first must not go on.
                other => return other,
            }
        }
        Outcome::Absent(shortest)
    }

    fn view(&self) -> Arc<View> {
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let (looked, view) = &mut *view;
        if matches!(self.whom, NameServers::System) && looked.elapsed() >= LOOK_AGAIN {
            *looked = Instant::now();
            if stamp() != view.read {
                *view = Arc::new(View::read(&self.whom));
            }
        }
        Arc::clone(view)
    }
}

fn stamp() -> Stamp {
    [HOSTS, RESOLV_CONF].map(|path| {
        let found = fs::metadata(path).ok()?;
        Some((found.modified().ok()?, found.len()))
    })
}

impl View {
    fn read(whom: &NameServers) -> Self {
        let (hosts, (config, mut options)) = match whom {
            NameServers::System => (hosts(Path::new(HOSTS)), system()),
            NameServers::Fixed { servers, search, ndots } => (HashMap::new(), fixed(servers, search, *ndots)),
        };
        let (search, ndots) = (config.search().to_vec(), options.ndots);
        options.timeout = options.timeout.min(MAX_TRY);
        options.attempts = options.attempts.clamp(1, 3);
        options.cache_size = 0; // what is known stands in `cache`
        options.try_tcp_on_error = true;
        let config = ResolverConfig::from_parts(None, Vec::new(), config.name_servers().to_vec());
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let resolver = builder.build().map_err(|error| Arc::from(error.to_string()));
        Self { read: stamp(), hosts, search, ndots, resolver }
    }

    /// What needs no question: `/etc/hosts`, and names that mean this machine (RFC 6761, section 6.3).
    fn static_addresses(&self, name: &str) -> Option<Arc<[IpAddr]>> {
        let localhost = || name == "localhost" || name.ends_with(".localhost");
        let loopback = || -> Arc<[IpAddr]> { [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].into() };
        self.hosts.get(name).cloned().or_else(|| localhost().then(loopback))
    }

    /// The full names to ask for, in order.
    fn names(&self, name: &str) -> Result<Vec<Name>, ()> {
        let mut whole = Name::from_ascii(name).map_err(|_| ())?;
        let (absolute, dots) = (whole.is_fqdn(), usize::from(whole.num_labels()).saturating_sub(1));
        let searched = || self.search.iter().filter_map(|domain| whole.clone().append_domain(domain).ok());
        let mut names: Vec<Name> = if absolute { Vec::new() } else { searched().collect() };
        names.iter_mut().for_each(|name| name.set_fqdn(true));
        whole.set_fqdn(true);
        let at = if dots >= self.ndots { 0 } else { names.len() };
        names.insert(at, whole);
        Ok(names)
    }

    /// Asks for both families of one full name.
    async fn ask(&self, name: &Name) -> Outcome {
        let resolver = match &self.resolver {
            Ok(resolver) => resolver,
            Err(why) => return Outcome::Failed(Arc::clone(why)),
        };
        let (a, aaaa) = (pin!(family(resolver, name, RecordType::A)), pin!(family(resolver, name, RecordType::AAAA)));
        let (first, other) = match select(a, aaaa).await {
            Either::Left(done) | Either::Right(done) => done,
        };
        let patience = if matches!(first, Outcome::Addresses(..)) { RESOLUTION_DELAY } else { Duration::MAX };
        match timeout(patience, other).await {
            Ok(second) => both(first, second),
            Err(_) => first,
        }
    }
}

async fn family(resolver: &TokioResolver, name: &Name, family: RecordType) -> Outcome {
    match resolver.lookup(name.clone(), family).await {
        Ok(found) => {
            let addresses: Arc<[IpAddr]> = found
                .answers()
                .iter()
                .filter_map(|record| match &record.data {
                    RData::A(address) => Some(IpAddr::V4(address.0)),
                    RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                    _ => None,
                })
                .collect();
            let ttl = found.answers().iter().map(|record| record.ttl).min().unwrap_or_default();
            let ttl = Duration::from_secs(ttl.into());
            if addresses.is_empty() { Outcome::Absent(Some(ttl)) } else { Outcome::Addresses(addresses, ttl) }
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(absent))) => {
            Outcome::Absent(absent.negative_ttl.map(|ttl| Duration::from_secs(ttl.into())))
        }
        Err(error) => Outcome::Failed(error.to_string().into()),
    }
}

/// What the answers for both families mean together.
fn both(first: Outcome, second: Outcome) -> Outcome {
    match (first, second) {
        (Outcome::Addresses(one, of_one), Outcome::Addresses(two, of_two)) => {
            Outcome::Addresses(one.iter().chain(&*two).copied().collect(), of_one.min(of_two))
        }
        (found @ Outcome::Addresses(..), _) | (_, found @ Outcome::Addresses(..)) => found,
        (failed @ Outcome::Failed(_), _) | (_, failed @ Outcome::Failed(_)) => failed,
        (Outcome::Absent(one), Outcome::Absent(two)) => Outcome::Absent(one.into_iter().chain(two).min()),
    }
}

/// The system's servers; without any, one on this machine (resolv.conf(5)).
fn system() -> (ResolverConfig, ResolverOpts) {
    let text = fs::read(RESOLV_CONF).unwrap_or_default();
    parse_resolv_conf(text).unwrap_or_else(|error| {
        tracing::warn!(%error, "{RESOLV_CONF} names no server; one on this machine is asked.");
        let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
        (ResolverConfig::from_parts(None, Vec::new(), vec![local]), ResolverOpts::default())
    })
}

fn fixed(servers: &[SocketAddr], search: &[String], ndots: usize) -> (ResolverConfig, ResolverOpts) {
    let server = |address: &SocketAddr| {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = address.port();
            connection
        });
        NameServerConfig::new(address.ip(), true, connections.into())
    };
    let search = search.iter().filter_map(|domain| Name::from_ascii(domain).ok()).collect();
    let config = ResolverConfig::from_parts(None, search, servers.iter().map(server).collect());
    let mut options = ResolverOpts::default();
    options.ndots = ndots;
    (config, options)
}

/// Names of a hosts file (hosts(5)); lines that are none are left out.
fn hosts(path: &Path) -> HashMap<String, Arc<[IpAddr]>> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut found: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse().ok()) else { continue };
        for name in words {
            found.entry(name.to_ascii_lowercase()).or_default().push(address);
        }
    }
    found.into_iter().map(|(name, addresses)| (name, addresses.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(name: &str, ndots: usize) -> Vec<String> {
        let search = ["shop.svc.cluster.local", "svc.cluster.local"].map(str::to_owned).to_vec();
        let view = View::read(&NameServers::Fixed { servers: Vec::new(), search, ndots });
        view.names(name).unwrap().iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn search_list_is_walked_as_the_dots_say() {
        let searched = ["web.shop.svc.cluster.local.", "web.svc.cluster.local."];
        assert_eq!(names("web", 5), [searched[0], searched[1], "web."]);
        assert_eq!(names("web", 0), ["web.", searched[0], searched[1]]);
        assert_eq!(names("a.example.org", 2)[0], "a.example.org.");
        assert_eq!(names("a.example.org", 3)[2], "a.example.org.");
        assert_eq!(names("web.", 5), ["web."]);
    }

    #[test]
    fn hosts_file_is_read_as_the_system_reads_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "# none\n127.0.0.1 localhost Web.Local # web\n::1\tlocalhost\nnonsense x\n10.0.0.1\n10.0.0.2 db db.local";
        fs::write(file.path(), text).unwrap();
        let hosts = hosts(file.path());
        assert_eq!(*hosts["localhost"], [IpAddr::from([127, 0, 0, 1]), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
        assert_eq!(*hosts["web.local"], [IpAddr::from([127, 0, 0, 1])]);
        assert_eq!(*hosts["db.local"], [IpAddr::from([10, 0, 0, 2])]);
        assert_eq!(hosts.len(), 4);
    }

    #[test]
    fn one_family_is_enough_and_doubt_is_no_absence() {
        let found = Outcome::Addresses([IpAddr::from([10, 0, 0, 1])].into(), Duration::from_secs(9));
        let (absent, failed) = (Outcome::Absent(None), Outcome::Failed("no answer".into()));
        assert_eq!(both(found.clone(), absent.clone()), found);
        assert_eq!(both(failed.clone(), found.clone()), found);
        assert_eq!(both(absent.clone(), failed.clone()), failed);
        assert_eq!(both(absent.clone(), Outcome::Absent(Some(HOSTS_TTL))), Outcome::Absent(Some(HOSTS_TTL)));
    }
}
