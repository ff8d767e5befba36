//! The listening sockets that outlive a worker.

use std::{net::TcpListener, os::fd::OwnedFd};

use socket2::{SockRef, Socket};

/// Sockets at most; a FetchrProxy names fewer.
const MOST: usize = 64;

/// Sockets by label.
#[derive(Debug, Default)]
pub(super) struct Store(Vec<Held>);

#[derive(Debug)]
pub(super) struct Held {
    pub(super) label: String,
    pub(super) socket: OwnedFd,
    /// Number of the worker that opened it.
    by: u64,
}

impl Store {
    /// Holds a socket, in the place of one that had its label.
    pub(super) fn keep(&mut self, label: String, socket: OwnedFd, by: u64) {
        self.forget(&label);
        if self.0.len() < MOST {
            self.0.push(Held { label, socket, by });
        }
    }

    /// Lets go of a socket that its worker has closed.
    pub(super) fn forget(&mut self, label: &str) {
        self.0.retain(|held| held.label != label);
    }

    /// Closes what a worker opened that never came to serve.
    pub(super) fn close_of(&mut self, worker: u64) {
        for held in self.0.extract_if(.., |held| held.by == worker) {
            close(&TcpListener::from(held.socket));
        }
    }

    /// What is held.
    pub(super) fn all(&self) -> &[Held] {
        &self.0
    }
}

/// Ends listening, in whatever process the socket is open: from now on the kernel refuses connections, and the address is free.
pub(crate) fn close(socket: &TcpListener) {
    // It fails only if it does not listen any more.
    let _ = SockRef::from(socket).shutdown(std::net::Shutdown::Both);
}

/// Whether a socket is one that listens.
pub(crate) fn listens(socket: &Socket) -> bool {
    socket.is_listener().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn closed_socket_refuses_although_others_have_it_and_its_address_is_free() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let other = listener.try_clone().unwrap();
        close(&listener);
        assert!(!listens(&Socket::from(other.try_clone().unwrap())));
        TcpStream::connect(address).unwrap_err();
        let again = TcpListener::bind(address).unwrap();
        TcpStream::connect(address).unwrap();
        drop((again, other));
    }

    #[test]
    fn sockets_beyond_the_most_are_not_held_and_those_that_are_may_be_replaced() {
        let (mut store, socket) = (Store::default(), TcpListener::bind("127.0.0.1:0").unwrap());
        let another = || OwnedFd::from(socket.try_clone().unwrap());
        (0..=MOST).for_each(|n| store.keep(n.to_string(), another(), 1));
        assert_eq!(store.all().len(), MOST);
        store.keep("0".into(), another(), 2);
        assert_eq!((store.all().len(), store.all().last().unwrap().label.as_str()), (MOST, "0"));
    }

    #[test]
    fn what_a_failed_worker_opened_is_closed_and_the_rest_is_held() {
        let open = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (kept, gone, replaced) = (open(), open(), open());
        let addresses = [&kept, &gone, &replaced].map(|listener| listener.local_addr().unwrap());
        let mut store = Store::default();
        store.keep("a".into(), replaced.into(), 1);
        store.keep("a".into(), kept.into(), 1);
        store.keep("b".into(), gone.into(), 2);
        store.close_of(2);
        assert_eq!(store.all().iter().map(|held| held.label.as_str()).collect::<Vec<_>>(), ["a"]);
        TcpStream::connect(addresses[0]).unwrap();
        TcpStream::connect(addresses[1]).unwrap_err();
        TcpStream::connect(addresses[2]).unwrap_err();
    }
}
