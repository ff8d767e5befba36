//! The listeners of mode Explicit. They follow the configuration and the files that it names.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwap;
use crds::{
    check::{self, UpstreamScheme},
    policy::Direction,
    proxy::{Http3, Listener as ListenerSpec, ProxyProtocol, UpstreamTls},
};
use http::HeaderValue;
use rustls::ServerConfig;
use tokio::{sync::Notify, task::JoinHandle};

use super::{Acceptor, Listening, Mode, quic::Quic};
use crate::{
    connection::Preamble,
    sockets::{Role, Sockets},
    tls::{Leaf, Origination, Read, Reader, Secrets, Terminator, TicketKeys, TlsError, server_config},
    upstream::{Endpoint, Key, Protocol},
};

/// The open listeners: new ones are opened, old ones are closed, and one that keeps its address keeps its connections even if its
/// upstream or its certificates change.
pub(crate) struct Explicit {
    acceptor: Acceptor,
    sockets: Sockets,
    secrets: Secrets,
    open: Vec<OpenListener>,
    /// Files that were read, also in vain.
    files: BTreeSet<PathBuf>,
    ended: Arc<Notify>,
}

struct OpenListener {
    spec: ListenerSpec,
    address: SocketAddr,
    target: Target,
    tls: Option<Tls>,
    quic: Option<Quic>,
    /// What answers say of HTTP/3, from when it is spoken.
    alternative: Arc<OnceLock<HeaderValue>>,
    /// The files of its certificates as they are in force.
    read: Read,
    task: JoinHandle<()>,
}

/// Where the requests of a listener go; it follows the configuration.
enum Target {
    Upstream(Arc<ArcSwap<Key>>),
    /// The hosts that they name, with this TLS to those of `https`.
    Hosts(Arc<ArcSwap<UpstreamTls>>),
}

impl Target {
    fn mode(&self) -> Mode {
        match self {
            Self::Upstream(upstream) => Mode::Reverse(Arc::clone(upstream)),
            Self::Hosts(tls) => Mode::Forward(Arc::clone(tls)),
        }
    }
}

/// The TLS of a listener, and what is kept from one certificate to the next.
struct Tls {
    terminator: Arc<Terminator>,
    leaves: Vec<Leaf>,
    tickets: TicketKeys,
}

/// A listener that can't be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// Its document is wrong.
    #[error("listener {name}: {problem}")]
    Spec {
        /// Name of the listener.
        name: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// Its certificates can't be used.
    #[error("listener {name}: {source}")]
    Tls {
        /// Name of the listener.
        name: String,
        /// What is wrong.
        source: TlsError,
    },
    /// A second upstream can't be spoken to.
    #[error("failover of {rule}: {source}")]
    Second {
        /// `namespace/policy/rule`.
        rule: String,
        /// What is wrong.
        source: TlsError,
    },
    /// The system refused.
    #[error("could not listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused only the socket of QUIC, which may be in the hands of connections from before.
    #[error("could not listen on {address} over UDP; the listener serves without HTTP/3")]
    Quic {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

impl ListenError {
    /// Whether something is not served at all.
    pub(crate) fn is_loss(&self) -> bool {
        !matches!(self, Self::Quic { .. })
    }

    /// Whether it may go well later, although no document changes.
    pub(crate) fn may_pass(&self) -> bool {
        !matches!(self, Self::Spec { .. })
    }
}

/// Who names the TLS of upstreams.
enum Named<'a> {
    Rule(&'a str),
    Listener(&'a str),
}

impl Named<'_> {
    fn error(&self, source: TlsError) -> ListenError {
        match self {
            Self::Rule(rule) => ListenError::Second { rule: (*rule).to_owned(), source },
            Self::Listener(name) => ListenError::Tls { name: (*name).to_owned(), source },
        }
    }
}

/// What a document and its files say.
struct Built {
    upstream: Option<Key>,
    tls: Option<(ServerConfig, Vec<Leaf>, TicketKeys)>,
    read: Read,
}

impl Explicit {
    pub(crate) fn new(acceptor: Acceptor, sockets: Sockets, secrets: Secrets) -> Self {
        Self { acceptor, sockets, secrets, open: Vec::new(), files: BTreeSet::new(), ended: Arc::default() }
    }

    /// Stops the listeners that are not among `specs`. When the tasks have ended, their sockets are spare.
    pub(crate) fn close_others(&mut self, specs: &[ListenerSpec]) -> Vec<JoinHandle<()>> {
        let pod = &self.acceptor.pod;
        let gone = self.open.extract_if(.., |open| {
            // One that somebody else has closed is opened again.
            let is_dead = open.task.is_finished() && pod.drain.accepts(open.spec.direction);
            is_dead || !specs.iter().any(|spec| open.continues_as(spec))
        });
        gone.map(|open| {
            open.task.abort();
            pod.own.remove(&open.address);
            pod.tls.expiries(&open.spec.name, &open.leaves(), &[]);
            open.task
        })
        .collect()
    }

    /// Opens the listeners of `specs` that are not open, and puts what has changed of the others in force, and of the TLS with `seconds`, the
    /// second upstreams of rules. What can't be opened is reported; the others are served, as before if need be.
    pub(crate) fn open<'a>(
        &mut self,
        specs: &'a [ListenerSpec],
        seconds: impl Iterator<Item = (&'a Arc<str>, &'a UpstreamTls)>,
    ) -> Vec<ListenError> {
        self.files.clear();
        let mut errors: Vec<_> = specs.iter().filter_map(|spec| self.open_or_update(spec).err()).collect();
        let seconds = seconds.map(|(rule, tls)| (Named::Rule(rule), tls));
        let forward = specs.iter().filter(|spec| spec.upstream.is_none());
        let forward = forward.filter_map(|spec| Some((Named::Listener(&spec.name), spec.upstream_tls.as_ref()?)));
        let originations = &self.acceptor.pod.originations;
        errors.extend(originations.follow(seconds.chain(forward)).into_iter().map(|(named, source)| named.error(source)));
        self.files.extend(originations.files());
        for open in &self.open {
            self.acceptor.pod.tls.expiries(&open.spec.name, &[], &open.leaves());
        }
        errors
    }

    /// Closes the sockets of listeners that are not among `specs`.
    pub(crate) fn close_spare(&self, specs: &[ListenerSpec]) {
        self.sockets.close_others(&specs.iter().filter_map(address).collect::<Vec<_>>());
    }

    /// Files that certificates were read from.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.files.iter().cloned().collect()
    }

    /// Told when a listener has ended that was not stopped here.
    pub(crate) fn ended(&self) -> Arc<Notify> {
        Arc::clone(&self.ended)
    }

    /// Addresses that are listened on, by name.
    pub(crate) fn addresses(&self) -> Vec<(String, SocketAddr)> {
        self.open.iter().map(|open| (open.spec.name.clone(), open.address)).collect()
    }

    fn open_or_update(&mut self, spec: &ListenerSpec) -> Result<(), ListenError> {
        let at = self.open.iter().position(|open| open.continues_as(spec));
        let built = self.build(spec, at);
        let Some(open) = at.map(|at| &mut self.open[at]) else { return self.open_new(spec, built?) };
        let metrics = &self.acceptor.pod.tls;
        let quic = match &built {
            Ok(Built { tls: Some((config, ..)), .. }) => open.speak_http3(&self.acceptor, config),
            _ => Ok(()),
        };
        match built {
            Ok(built) if open.spec == *spec && open.read == built.read => quic,
            Ok(built) => {
                if !built.read.paths.is_empty() {
                    tracing::info!(listener = spec.name, "Its certificates are in force.");
                    metrics.reloaded(true);
                }
                match (&open.target, built.upstream) {
                    (Target::Upstream(current), Some(upstream)) => current.store(Arc::new(upstream)),
                    (Target::Hosts(current), _) => current.store(Arc::new(spec.upstream_tls.clone().unwrap_or_default())),
                    (Target::Upstream(_), None) => {}
                }
                if let (Some(tls), Some((config, leaves, tickets))) = (&mut open.tls, built.tls) {
                    if let Some(quic) = &open.quic {
                        quic.replace(&config);
                    }
                    tls.terminator.replace(config);
                    metrics.expiries(&open.spec.name, &tls.leaves, &[]); // under its name of before
                    (tls.leaves, tls.tickets) = (leaves, tickets);
                }
                (open.spec, open.read) = (spec.clone(), built.read);
                quic
            }
            Err(error) => {
                metrics.reloaded(false);
                Err(error)
            }
        }
    }

    fn open_new(&mut self, spec: &ListenerSpec, built: Built) -> Result<(), ListenError> {
        let wrong = |problem: String| ListenError::Spec { name: spec.name.clone(), problem };
        let wanted = address(spec).ok_or_else(|| wrong(format!("{:?} port {} is no address", spec.address, spec.port)))?;
        if built.upstream.is_none() && spec.direction == Direction::Inbound {
            return Err(wrong("without an upstream it is a forward proxy, and needs direction Outbound".to_owned()));
        }
        let pod = &self.acceptor.pod;
        let quic_config = built.tls.as_ref().filter(|_| spec.http3 == Http3::Enabled).map(|(config, ..)| config.clone());
        if quic_config.is_some() && !Quic::SPOKEN {
            return Err(wrong("this build speaks no HTTP/3: it needs the cargo feature http3".to_owned()));
        }
        let tls = built.tls.map(|(config, leaves, tickets)| {
            let terminator = Terminator::new(config, pod.tls.clone());
            Tls { terminator, leaves, tickets }
        });
        let target = match built.upstream {
            Some(upstream) => Target::Upstream(Arc::new(ArcSwap::from_pointee(upstream))),
            None => Target::Hosts(Arc::new(ArcSwap::from_pointee(spec.upstream_tls.clone().unwrap_or_default()))),
        };
        let mode = target.mode();
        let proxy_protocol = spec.proxy_protocol == ProxyProtocol::Required;
        let alternative = Arc::default();
        let preamble = Preamble {
            proxy_protocol,
            tls: tls.as_ref().map(|tls| Arc::clone(&tls.terminator)),
            alternative: quic_config.as_ref().map(|_| Arc::clone(&alternative)),
        };
        let refused = |source| ListenError::Bind { address: wanted, source };
        let socket = self.sockets.open(Role::Listener, wanted).map_err(refused)?;
        let address = socket.address().map_err(refused)?;
        let listening = Listening::explicit(socket, spec.direction, mode, preamble);
        pod.own.add(address);
        tracing::info!(listener = spec.name, %address, tls = tls.is_some(), "Listening.");
        let (accepting, ended) = (self.acceptor.clone().accept(listening), self.ended());
        let task = self.acceptor.home().spawn(async move {
            accepting.await;
            ended.notify_one();
        });
        let (spec, read) = (spec.clone(), built.read);
        let mut open = OpenListener { spec, address, target, tls, quic: None, alternative, read, task };
        let quic = quic_config.map_or(Ok(()), |config| open.speak_http3(&self.acceptor, &config));
        self.open.push(open);
        quic
    }

    /// Reads what a listener needs. `at` is where it is open already.
    fn build(&mut self, spec: &ListenerSpec, at: Option<usize>) -> Result<Built, ListenError> {
        let mut reader = Reader::new(&self.secrets);
        let before = at.map(|at| &self.open[at]);
        let upstream = spec.upstream.as_deref().map(|upstream| self.upstream(spec, upstream, &mut reader)).transpose();
        let tls = upstream.and_then(|upstream| Ok((upstream, tls(spec, before, &mut reader)?)));
        let read = reader.finish();
        self.files.extend(read.paths.iter().cloned());
        tls.map(|(upstream, tls)| Built { upstream, tls, read })
    }

    fn upstream(&self, spec: &ListenerSpec, text: &str, reader: &mut Reader<'_>) -> Result<Key, ListenError> {
        let wrong = |problem| ListenError::Spec { name: spec.name.clone(), problem };
        let address = check::parse_upstream(text).map_err(wrong)?;
        if address.scheme != UpstreamScheme::Https {
            return Key::parse_in_clear(text).map_err(wrong);
        }
        let metrics = self.acceptor.pod.tls.clone();
        let settings = spec.upstream_tls.clone().unwrap_or_default();
        let tls = Origination::new(&address.host, &settings, reader, metrics);
        let tls = tls.map_err(|source| ListenError::Tls { name: spec.name.clone(), source })?;
        Ok(Key { endpoint: Endpoint::of(&address.host, address.port), protocol: Protocol::Http1, tls: Some(tls) })
    }
}

fn address(spec: &ListenerSpec) -> Option<SocketAddr> {
    let ip: IpAddr = spec.address.parse().ok()?;
    Some(SocketAddr::new(ip, u16::try_from(spec.port).ok()?))
}

/// The TLS of a listener. Tickets of before are taken on, unless the CAs of clients could have changed: a session that goes on does
/// not show its certificate again.
fn tls(
    spec: &ListenerSpec,
    before: Option<&OpenListener>,
    reader: &mut Reader<'_>,
) -> Result<Option<(ServerConfig, Vec<Leaf>, TicketKeys)>, ListenError> {
    let Some(tls) = &spec.tls else { return Ok(None) };
    let mut build = || {
        let asks_clients = tls.client_ca.is_some() || before.is_some_and(OpenListener::asks_clients);
        let kept = before.and_then(|before| before.tls.as_ref()).filter(|_| !asks_clients);
        let tickets = kept.map_or_else(TicketKeys::new, |kept| Ok(kept.tickets.clone()))?;
        let (config, leaves) = server_config(tls, reader, tickets.clone())?;
        Ok((config, leaves, tickets))
    };
    build().map(Some).map_err(|source| ListenError::Tls { name: spec.name.clone(), source })
}

impl OpenListener {
    /// Opens the socket of QUIC, if one is wanted and there is none.
    fn speak_http3(&mut self, acceptor: &Acceptor, config: &ServerConfig) -> Result<(), ListenError> {
        if self.spec.http3 != Http3::Enabled || self.quic.is_some() {
            return Ok(());
        }
        let (address, mode) = (self.address, self.target.mode());
        let quic = Quic::open(acceptor, address, self.spec.direction, mode, config);
        self.quic = Some(quic.map_err(|source| ListenError::Quic { address, source })?);
        let alternative = HeaderValue::try_from(format!("h3=\":{}\"; ma=86400", address.port()));
        // It is set once: a listener without HTTP/3 is another one.
        alternative.into_iter().for_each(|alternative| drop(self.alternative.set(alternative)));
        tracing::info!(listener = self.spec.name, %address, "HTTP/3 is spoken.");
        Ok(())
    }

    fn continues_as(&self, spec: &ListenerSpec) -> bool {
        let place = |spec: &ListenerSpec| {
            let kind = (spec.direction, spec.upstream.is_some(), spec.tls.is_some(), spec.proxy_protocol, spec.http3);
            (spec.address.clone(), spec.port, kind)
        };
        place(&self.spec) == place(spec)
    }

    fn asks_clients(&self) -> bool {
        self.spec.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }

    fn leaves(&self) -> Vec<Leaf> {
        self.tls.as_ref().map_or_else(Vec::new, |tls| tls.leaves.clone())
    }
}
