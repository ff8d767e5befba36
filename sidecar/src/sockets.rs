//! The listening sockets of this process. With a supervisor they outlive it: one that is opened is handed up, and the next worker
//! finds it. So there are two ways for a socket to go: it is let go of, and may be taken again, or it is closed on purpose, for all.

use std::{
    io, net,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::TcpListener,
};

use crate::supervisor::{Teller, close, listens};

/// Connections that wait to be accepted; more than a burst of clients of one pod.
const BACKLOG: i32 = 1024;

/// What a socket is for. Together with its address that is what it is called from one worker to the next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// The admin interface.
    Admin,
    /// Metrics and health.
    Metrics,
    /// Intercepted inbound traffic.
    Inbound,
    /// Intercepted outbound traffic.
    Outbound,
    /// The forward proxy of a pod.
    Forward,
    /// A listener of mode Explicit.
    Listener,
}

/// All of them. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Sockets(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// None without a supervisor: there is nobody else who has the sockets.
    supervisor: Option<Teller>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    standing: Standing,
    /// Open, and used by nobody here.
    spare: Vec<Spare>,
}

#[derive(Debug)]
struct Spare {
    label: String,
    socket: net::TcpListener,
    /// Closed as soon as this worker may.
    unwanted: bool,
}

/// Whether this worker decides about the sockets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Standing {
    /// Not yet: if it fails, they must be as they were.
    #[default]
    Starting,
    /// It does.
    Lead,
    /// Not any more.
    Retired,
}

impl Sockets {
    /// With those that a supervisor holds.
    pub(crate) fn held(sockets: Vec<(String, net::TcpListener)>, supervisor: Teller) -> Self {
        let spare = sockets.into_iter().map(|(label, socket)| Spare { label, socket, unwanted: false }).collect();
        let state = Mutex::new(State { standing: Standing::Starting, spare });
        Self(Arc::new(Inner { supervisor: Some(supervisor), state }))
    }

    /// Listens on an address: on the socket that is there, or on a new one.
    pub(crate) fn open(&self, role: Role, address: SocketAddr) -> io::Result<Socket> {
        if self.state().standing == Standing::Retired {
            return Err(io::Error::other("another worker listens from now on"));
        }
        let label = label(role, address);
        let listener = match self.take(&label) {
            Some(listener) => listener,
            None => {
                let listener = bind(address)?;
                if let Some(supervisor) = &self.0.supervisor {
                    supervisor.holds(&label, &listener);
                }
                listener
            }
        };
        Ok(Socket { listener: Some(listener), label, sockets: self.clone() })
    }

    /// A socket that listens and that nobody uses.
    fn take(&self, label: &str) -> Option<net::TcpListener> {
        let mut state = self.state();
        let at = state.spare.iter().position(|spare| spare.label == label)?;
        let socket = RawSocket::from(state.spare.swap_remove(at).socket);
        listens(&socket).then(|| socket.into())
    }

    /// Closes the sockets that are not used, but for listeners on `wanted` addresses.
    pub(crate) fn close_others(&self, wanted: &[SocketAddr]) {
        let wanted: Vec<String> = wanted.iter().map(|address| label(Role::Listener, *address)).collect();
        let mut state = self.state();
        for spare in &mut state.spare {
            spare.unwanted |= !wanted.contains(&spare.label);
        }
        self.close_unwanted(&mut state);
    }

    /// From now on this worker decides.
    pub(crate) fn lead(&self) {
        let mut state = self.state();
        state.standing = Standing::Lead;
        self.close_unwanted(&mut state);
    }

    /// From now on another worker decides: nothing is closed for all.
    pub(crate) fn retire(&self) {
        let mut state = self.state();
        state.standing = Standing::Retired;
        state.spare.clear();
    }

    fn close_unwanted(&self, state: &mut State) {
        if self.0.supervisor.is_some() && state.standing != Standing::Lead {
            return;
        }
        for spare in state.spare.extract_if(.., |spare| spare.unwanted) {
            close(&spare.socket);
            if let Some(supervisor) = &self.0.supervisor {
                supervisor.closed(&spare.label);
            }
        }
    }

    fn let_go(&self, label: String, socket: net::TcpListener, unwanted: bool) {
        let mut state = self.state();
        if state.standing != Standing::Retired {
            state.spare.push(Spare { label, socket, unwanted });
            self.close_unwanted(&mut state);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn label(role: Role, address: SocketAddr) -> String {
    let role = match role {
        Role::Admin => "admin",
        Role::Metrics => "metrics",
        Role::Inbound => "inbound",
        Role::Outbound => "outbound",
        Role::Forward => "forward",
        Role::Listener => "listener",
    };
    format!("{role} {address}")
}

fn bind(address: SocketAddr) -> io::Result<net::TcpListener> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?; // what is accepted inherits it, which saves a call for each
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A socket that listens. When it is dropped it is let go of, and listens until somebody takes or closes it.
#[derive(Debug)]
pub(crate) struct Socket {
    /// Always there until it is dropped.
    listener: Option<net::TcpListener>,
    label: String,
    sockets: Sockets,
}

impl Socket {
    /// To accept from it on the runtime of now.
    pub(crate) fn accepting(&self) -> io::Result<Accepting<'_>> {
        let listener = self.listener.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        // SAFETY: what is borrowed stays open, and is the same socket, for as long as it is borrowed: longer than this lives.
        let registered = unsafe { AsyncFd::register_with_interest(listener.as_fd(), Interest::READABLE) };
        Ok(Accepting(registered?))
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.as_ref().ok_or(io::ErrorKind::NotConnected)?.local_addr()
    }

    /// Closes it on purpose: the kernel refuses connections, whoever else has the socket.
    pub(crate) fn close(mut self) {
        self.end(true);
    }

    /// The bare socket, which this process closes for itself alone.
    pub(crate) fn into_listener(mut self) -> io::Result<TcpListener> {
        let listener = self.listener.take().ok_or(io::ErrorKind::NotConnected)?;
        TcpListener::from_std(listener)
    }

    fn end(&mut self, unwanted: bool) {
        if let Some(listener) = self.listener.take() {
            self.sockets.let_go(std::mem::take(&mut self.label), listener, unwanted);
        }
    }
}

/// Accepts connections.
pub(crate) struct Accepting<'a>(AsyncFd<BorrowedFd<'a>>);

impl Accepting<'_> {
    /// The next one, which is known to no runtime yet: it is to be served by another thread, maybe.
    pub(crate) async fn accept(&self) -> io::Result<(net::TcpStream, SocketAddr)> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let accept = |socket: &BorrowedFd<'_>| Ok(acceptfrom_with(socket, flags)?);
        let (stream, peer) = self.0.async_io(Interest::READABLE, accept).await?;
        let peer = peer.and_then(|peer| peer.try_into().ok()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok((stream.into(), peer))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.end(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: SocketAddr = SocketAddr::new(net::IpAddr::V4(net::Ipv4Addr::LOCALHOST), 0);

    fn free() -> SocketAddr {
        net::TcpListener::bind(ANY).unwrap().local_addr().unwrap()
    }

    #[tokio::test]
    async fn socket_that_is_let_go_of_listens_until_it_is_taken_or_not_wanted() {
        let (sockets, kept, gone) = (Sockets::default(), free(), free());
        let before = sockets.open(Role::Listener, kept).unwrap();
        drop((before, sockets.open(Role::Listener, gone).unwrap()));
        net::TcpStream::connect(kept).unwrap();
        sockets.close_others(&[kept]);
        net::TcpStream::connect(gone).unwrap_err();
        let again = sockets.open(Role::Listener, kept).unwrap();
        again.accepting().unwrap().accept().await.expect("who came meanwhile was kept waiting");
        again.close();
        net::TcpStream::connect(kept).unwrap_err();
        sockets.open(Role::Listener, kept).expect("the address is free");
    }
}
