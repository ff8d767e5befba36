//! The pair of sockets between supervisor and worker. Packets keep messages apart, and a packet carries a descriptor.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Serialize, de::DeserializeOwned};

/// Longest message; a label and some words are far shorter.
const MAX_MESSAGE: usize = 4096;

/// One end. Neither sending nor receiving waits.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

/// What a packet held.
#[derive(Debug)]
pub(super) enum Packet<T> {
    /// A message, and the socket that came along.
    Message(T, Option<OwnedFd>),
    /// Something that is no message; it was dropped.
    Garbage,
    /// The other end is gone.
    End,
}

impl Channel {
    /// Both ends.
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(ours), Self(theirs)))
    }

    /// The end that was inherited.
    pub(super) fn of(end: OwnedFd) -> Self {
        Self(end)
    }

    pub(super) fn send(&self, message: &impl Serialize, socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut along = SendAncillaryBuffer::new(&mut space);
        let sockets: Vec<BorrowedFd<'_>> = socket.into_iter().collect();
        if !sockets.is_empty() {
            along.push(SendAncillaryMessage::ScmRights(&sockets));
        }
        sendmsg(&self.0, &[IoSlice::new(&text)], &mut along, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next packet; an error of kind `WouldBlock` if there is none.
    pub(super) fn receive<T: DeserializeOwned>(&self) -> io::Result<Packet<T>> {
        let mut text = [0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut along = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&self.0, &mut [IoSliceMut::new(&mut text)], &mut along, RecvFlags::CMSG_CLOEXEC);
        let len = match received {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::CONNRESET | rustix::io::Errno::PIPE) => 0,
            Err(error) => return Err(error.into()),
        };
        let mut sockets = along.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        });
        let socket = sockets.next().and_then(|mut sockets| sockets.next());
        match serde_json::from_slice(&text[..len]) {
            _ if len == 0 => Ok(Packet::End),
            Ok(message) => Ok(Packet::Message(message, socket)),
            Err(_) => Ok(Packet::Garbage),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn socket_travels_with_its_message_and_outlives_its_sender() {
        let (here, there) = Channel::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        here.send(&"take it", Some(listener.as_fd())).unwrap();
        here.send(&"and go", None).unwrap();
        drop((listener, here));
        let Packet::Message(text, Some(socket)) = there.receive::<String>().unwrap() else { panic!("a socket comes along") };
        assert_eq!(text, "take it");
        assert!(matches!(there.receive::<String>().unwrap(), Packet::Message(text, None) if text == "and go"));
        assert!(matches!(there.receive::<String>().unwrap(), Packet::End));
        TcpStream::connect(address).unwrap();
        drop(socket);
        TcpStream::connect(address).unwrap_err();
    }

    #[test]
    fn empty_channel_does_not_wait_and_garbage_is_dropped() {
        let (here, there) = Channel::pair().unwrap();
        assert_eq!(there.receive::<String>().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        here.send(&7, None).unwrap();
        assert!(matches!(there.receive::<String>().unwrap(), Packet::Garbage));
    }

    #[test]
    fn many_messages_fit_before_anybody_reads() {
        let (here, there) = Channel::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for number in 0..100 {
            here.send(&number, Some(listener.as_fd())).unwrap();
        }
        for number in 0..100 {
            assert!(matches!(there.receive::<i32>().unwrap(), Packet::Message(got, Some(_)) if got == number));
        }
    }
}
