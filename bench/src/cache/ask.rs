//! Single requests, and many of them as fast as they come.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    ops::Range,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{idle::answer_len, peers::LOAD_CORE, process::pin_thread};

const PATIENCE: Duration = Duration::from_secs(20);

/// Connections of [`all`].
const CONNECTIONS: u32 = 8;
/// Requests that are written at once.
const BATCH: usize = 32;

/// A whole answer of class 2xx, as text; its connection ends with it. The host is the address, as in what wrk sends.
pub(super) fn get(address: SocketAddr, path: &str) -> Result<String> {
    send(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"))
}

/// The same of a POST, with more lines of its head.
pub(super) fn post(address: SocketAddr, path: &str, head: &str, body: &str) -> Result<String> {
    let length = body.len();
    send(
        address,
        &format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{head}Content-Length: {length}\r\n\r\n{body}"),
    )
}

fn send(address: SocketAddr, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    ensure!(answer.starts_with("HTTP/1.1 2"), "{address} answers {answer:?}");
    Ok(answer)
}

/// Asks for `/o/NUMBER` with each number, over several connections.
pub(super) fn all(address: SocketAddr, numbers: Range<u32>) -> Result<()> {
    let share = numbers.len().div_ceil(CONNECTIONS as usize).max(1);
    thread::scope(|scope| {
        let parts = numbers.clone().step_by(share).map(|first| first..numbers.end.min(first + share as u32));
        let askers: Vec<_> = parts
            .map(|numbers| {
                scope.spawn(move || {
                    pin_thread(LOAD_CORE);
                    one_by_one(address, numbers)
                })
            })
            .collect();
        askers.into_iter().try_for_each(|asker| asker.join().unwrap_or_else(|_| bail!("a sending thread panicked")))
    })
}

fn one_by_one(address: SocketAddr, numbers: Range<u32>) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let numbers: Vec<u32> = numbers.collect();
    for batch in numbers.chunks(BATCH) {
        let requests: String =
            batch.iter().map(|number| format!("GET /o/{number} HTTP/1.1\r\nHost: {address}\r\n\r\n")).collect();
        stream.write_all(requests.as_bytes())?;
        answers(&mut stream, batch.len())?;
    }
    Ok(())
}

/// Reads so many answers of class 2xx.
fn answers(stream: &mut TcpStream, count: usize) -> Result<()> {
    let (mut read, mut piece, mut left) = (Vec::new(), [0; 16 * 1024], count);
    while left > 0 {
        let mut at = 0;
        while left > 0
            && let Some(len) = answer_len(&read[at..]).filter(|len| read.len() - at >= *len)
        {
            ensure!(read[at..].starts_with(b"HTTP/1.1 2"), "{:?}", String::from_utf8_lossy(&read[at..at + len]));
            (at, left) = (at + len, left - 1);
        }
        read.drain(..at);
        if left > 0 {
            match stream.read(&mut piece).context("an answer could not be read")? {
                0 => bail!("a connection ended"),
                more => read.extend_from_slice(&piece[..more]),
            }
        }
    }
    Ok(())
}
