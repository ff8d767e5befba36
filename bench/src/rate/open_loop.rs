//! Requests at a constant rate, whether or not answers come: a request is due by the clock, waits for a connection if all are busy, and its
//! latency counts from the moment at which it was due. A proxy that stalls is so charged for all that it held up.
//!
//! One thread looks at all sockets: with a runtime's timer, which ticks by the millisecond, fifty requests would be due at once.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{idle::answer_len, peers::LOAD_CORE, process};

const REQUEST: &[u8] = b"GET /1k HTTP/1.1\r\nHost: bench\r\n\r\n";
/// How long answers may take after the last request was due.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is sent.
#[derive(Clone, Copy)]
pub(crate) struct Schedule {
    /// Requests a second.
    pub(crate) rate: f64,
    pub(crate) duration: Duration,
    pub(crate) connections: usize,
}

/// A connection, and what it waits for.
struct Connection {
    stream: TcpStream,
    due: Instant,
    answer: Vec<u8>,
    len: Option<usize>,
}

impl Schedule {
    /// Sends it; the latencies of all requests, in order of their length.
    pub(crate) fn send(self, address: SocketAddr) -> Result<Vec<Duration>> {
        self.send_each(address, &|_| REQUEST.to_vec())
    }

    /// The same with a request for each number.
    pub(crate) fn send_each(self, address: SocketAddr, request: &(dyn Fn(usize) -> Vec<u8> + Sync)) -> Result<Vec<Duration>> {
        let sent = thread::scope(|scope| {
            let sender = scope.spawn(|| {
                process::pin_thread(LOAD_CORE);
                self.send_here(address, request)
            });
            sender.join()
        });
        let Ok(sent) = sent else { bail!("the sending thread panicked") };
        let mut latencies = sent?;
        latencies.sort_unstable();
        Ok(latencies)
    }

    fn send_here(self, address: SocketAddr, request: &dyn Fn(usize) -> Vec<u8>) -> Result<Vec<Duration>> {
        let mut connections = (0..self.connections).map(|_| Connection::open(address)).collect::<Result<Vec<_>>>()?;
        let mut polled: Vec<libc::pollfd> = connections.iter().map(Connection::polled).collect();
        let total = (self.rate * self.duration.as_secs_f64()) as usize;
        let (mut latencies, mut waiting) = (Vec::with_capacity(total), VecDeque::new());
        let mut idle: Vec<usize> = (0..self.connections).collect();
        let (start, mut next, mut sent) = (Instant::now(), 0, 0);
        let due = |index: usize| start + Duration::from_secs_f64(index as f64 / self.rate);
        let end = start + self.duration + PATIENCE;
        while latencies.len() < total {
            let now = Instant::now();
            if now > end {
                bail!("{} of {total} requests were not answered", total - latencies.len());
            }
            while next < total && due(next) <= now {
                waiting.push_back(due(next));
                next += 1;
            }
            while let (Some(&free), Some(&first)) = (idle.last(), waiting.front()) {
                connections[free].send(first, &request(sent))?;
                sent += 1;
                polled[free].events = libc::POLLIN;
                idle.pop();
                waiting.pop_front();
            }
            wait(&mut polled, if next < total { due(next).saturating_duration_since(Instant::now()) } else { PATIENCE })?;
            for index in 0..polled.len() {
                if polled[index].revents != 0 && connections[index].has_answer()? {
                    latencies.push(connections[index].due.elapsed());
                    polled[index].events = 0;
                    idle.push(index);
                }
            }
        }
        Ok(latencies)
    }
}

impl Connection {
    fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, due: Instant::now(), answer: Vec::with_capacity(4096), len: None })
    }

    fn polled(&self) -> libc::pollfd {
        use std::os::fd::AsRawFd;
        libc::pollfd { fd: self.stream.as_raw_fd(), events: 0, revents: 0 }
    }

    /// The socket was idle, so the request fits.
    fn send(&mut self, due: Instant, request: &[u8]) -> Result<()> {
        (self.due, self.len) = (due, None);
        self.answer.clear();
        self.stream.write_all(request).context("a request could not be sent")
    }

    fn has_answer(&mut self) -> Result<bool> {
        let mut piece = [0; 4096];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => bail!("a connection was closed"),
                Ok(read) => self.answer.extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error).context("an answer could not be read"),
            }
            self.len = self.len.or_else(|| answer_len(&self.answer));
            if self.len.is_some_and(|len| self.answer.len() >= len) {
                return Ok(true);
            }
        }
    }
}

/// Waits until a socket can be read, or for so long.
fn wait(polled: &mut [libc::pollfd], most: Duration) -> Result<()> {
    let most = libc::timespec { tv_sec: most.as_secs() as libc::time_t, tv_nsec: most.subsec_nanos().into() };
    // SAFETY: both pointers are to locals that outlive the call, and the length is that of the slice.
    let ready = unsafe { libc::ppoll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, &raw const most, std::ptr::null()) };
    if ready < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
        bail!("ppoll failed: {}", io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// An origin that answers one request after the other, over all connections, the first after a pause.
    fn slow_start(pause: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut piece, mut first) = ([0; 1024], true);
            while let Ok(read @ 1..) = stream.read(&mut piece) {
                if std::mem::take(&mut first) {
                    thread::sleep(pause);
                }
                for _ in 0..read / REQUEST.len() {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx").unwrap();
                }
            }
        });
        address
    }

    #[test]
    fn stall_is_charged_to_all_requests_that_were_due_meanwhile() {
        let address = slow_start(Duration::from_millis(200));
        let schedule = Schedule { rate: 500.0, duration: Duration::from_millis(400), connections: 1 };
        let latencies = schedule.send(address).unwrap();
        assert_eq!(latencies.len(), 200);
        let held_up = latencies.iter().filter(|latency| **latency > Duration::from_millis(50)).count();
        assert!(held_up >= 60, "only {held_up} of the hundred that were due in the pause");
    }
}
