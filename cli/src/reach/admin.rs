//! What is asked of the admin port of a proxy on this machine.

use std::{
    fmt::Write as _,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use serde::de::DeserializeOwned;
use sidecar::ask::ExplainRequest;

use crate::{args::StateArgs, failure::Failure};

/// How long a connection may take, and what is only looked up.
pub(crate) const CONNECTING: Duration = Duration::from_secs(30);
/// Bytes of an answer, and of its head.
const LONGEST: u64 = 16 << 20;
const LONGEST_HEAD: u64 = 16 << 10;
/// Bytes of the head of an answer that is stored.
const LONGEST_STORED: u64 = 2 << 20;

/// A path with a query.
#[derive(Debug)]
pub(crate) struct Target(String);

impl Target {
    /// A path that needs no escapes.
    pub(crate) fn new(path: &str) -> Self {
        Self(path.to_owned())
    }

    /// With a request as its query.
    pub(crate) fn about(self, request: &ExplainRequest) -> Self {
        let ExplainRequest { direction, method, url, headers, client } = request;
        let asked = self.with("url", Some(url)).with("method", Some(method)).with("direction", Some(format!("{direction:?}")));
        let fields = headers.iter().map(|(name, value)| format!("{name}:{value}"));
        fields.fold(asked.with("client", Some(client)), |target, field| target.with("header", Some(field)))
    }

    /// What a person needs to ask it of a pod.
    pub(crate) fn right(&self) -> &'static str {
        match self.0.get(1..).and_then(|path| path.split(['/', '?']).next()) {
            Some("limits") => "get sidecars/limits",
            Some("throttles") => "get sidecars/throttles",
            _ => "get sidecars/cache",
        }
    }

    /// As it is sent.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// With a parameter, if it has a value.
    pub(crate) fn with(mut self, name: &str, value: Option<impl ToString>) -> Self {
        if let Some(value) = value {
            self.0.push(if self.0.contains('?') { '&' } else { '?' });
            self.0.push_str(name);
            self.0.push('=');
            for byte in value.to_string().bytes() {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => self.0.push(char::from(byte)),
                    // Writing to a string can't fail.
                    _ => drop(write!(self.0, "%{byte:02X}")),
                }
            }
        }
        self
    }
}

/// Sends an order, and returns what it was answered within some time.
pub(crate) fn ask(state: &StateArgs, method: &str, target: &Target, body: &str, patience: Duration) -> Result<String, Failure> {
    let mut answer = Vec::new();
    let mut reader = Answer::to(state, method, target, body, patience)?;
    reader.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// What the proxy says to a question.
pub(crate) fn look_up<T: DeserializeOwned>(state: &StateArgs, target: &Target) -> Result<T, Failure> {
    read(target, ask(state, "GET", target, "", CONNECTING)?.as_bytes())
}

/// What the proxy says to an order, of which the body is JSON.
pub(crate) fn order<T: DeserializeOwned>(state: &StateArgs, target: &Target, body: &str) -> Result<T, Failure> {
    read(target, ask(state, "POST", target, body, CONNECTING)?.as_bytes())
}

fn read<T: DeserializeOwned>(target: &Target, answer: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(answer).map_err(|e| {
        let hint = format!("{e}\nis it of another version than this program?");
        Failure::new("the proxy's answer is none").at(&target.0).hint(hint)
    })
}

/// Sends a body of some length, and returns what the proxy says to it within some time after.
pub(crate) fn send<T: DeserializeOwned>(
    state: &StateArgs,
    target: &Target,
    body: &mut dyn Read,
    length: u64,
    patience: Duration,
) -> Result<T, Failure> {
    let mut answer = Vec::new();
    Answer::after(state, "POST", target, body, length, patience)?.read_to_end(&mut answer)?;
    read(target, &answer)
}

/// An answer with status 200, whose body is to be read.
pub(crate) struct Answer {
    body: Box<dyn BufRead>,
    address: SocketAddr,
}

impl Answer {
    /// Sends a request. Any other status is a failure.
    pub(crate) fn to(state: &StateArgs, method: &str, target: &Target, body: &str, patience: Duration) -> Result<Self, Failure> {
        Self::after(state, method, target, &mut body.as_bytes(), body.len() as u64, patience)
    }

    /// Sends a request with a body of some length.
    fn after(
        state: &StateArgs,
        method: &str,
        Target(target): &Target,
        body: &mut dyn Read,
        length: u64,
        patience: Duration,
    ) -> Result<Self, Failure> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, state.admin_port));
        let file = state.dir()?.join("admin-token");
        let token = fs::read_to_string(&file)
            .map_err(|e| nobody(address, format!("its token can't be read from {}: {e}", file.display())))?;
        // Of this version, for the end of an answer without a length is then the end of the connection.
        let request = format!(
            "{method} {target} HTTP/1.0\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-length: {length}\r\n\r\n",
            token.trim()
        );
        let connected = TcpStream::connect_timeout(&address, CONNECTING).and_then(|mut stream| {
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(CONNECTING))?;
            stream.write_all(request.as_bytes())?;
            Ok(stream)
        });
        let mut stream = connected.map_err(|e| nobody(address, e.to_string()))?;
        // Who refuses a body may do so before its end.
        let sent = io::copy(body, &mut stream);
        let mut stream = BufReader::new(stream);
        let head = head(&mut stream, LONGEST_HEAD, address).map_err(|failure| match sent {
            Ok(_) => failure,
            Err(e) => nobody(address, format!("it could not be sent: {e}")),
        })?;
        let status = head.split(' ').nth(1).unwrap_or_default();
        let mut answer = Self { body: Box::new(stream.take(length_after(&head).unwrap_or(u64::MAX))), address };
        if status == "200" {
            return Ok(answer);
        }
        let mut why = Vec::new();
        answer.read_to_end(&mut why)?;
        let why = String::from_utf8_lossy(&why).trim().to_owned();
        Err(match status {
            "400" => Failure::usage(why),
            "404" if !why.is_empty() => Failure::new(why),
            _ => Failure::new(format!("the proxy answered {status}")).at(address).hint(why),
        })
    }

    /// Reads the head of the message that it holds, which is left with its body. The head, and how long that is.
    pub(crate) fn message(&mut self) -> Result<(String, u64), Failure> {
        let head = head(&mut self.body, LONGEST_STORED, self.address)?;
        let length = length_after(&head).ok_or_else(|| nobody(self.address, "what is stored has no length".to_owned()))?;
        Ok((head, length))
    }

    /// Reads the whole of it, up to some length.
    fn read_to_end(&mut self, out: &mut Vec<u8>) -> Result<(), Failure> {
        let read = self.body.by_ref().take(LONGEST).read_to_end(out);
        read.map(drop).map_err(|e| nobody(self.address, e.to_string()))
    }
}

impl Read for Answer {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.body.read(into)
    }
}

/// Reads a head, of so many bytes at most.
fn head(stream: &mut impl BufRead, most: u64, address: SocketAddr) -> Result<String, Failure> {
    let mut head = Vec::new();
    let mut limited = stream.take(most);
    while !head.ends_with(b"\r\n\r\n") {
        let read = limited.read_until(b'\n', &mut head).map_err(|e| nobody(address, e.to_string()))?;
        if read == 0 {
            return Err(nobody(address, "its answer has no end".to_owned()));
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// The length of what follows a head.
fn length_after(head: &str) -> Option<u64> {
    let lengths =
        head.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.map(|(_, value)| value.trim().parse().ok()).next()?
}

fn nobody(address: SocketAddr, why: String) -> Failure {
    Failure::unreachable("no proxy answers on its admin port").at(address).hint(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_escaped_and_absent_ones_left_out() {
        let target = Target::new("/a").with("url", Some("http://a/ü?b&c")).with("none", None::<u64>).with("n", Some(7));
        assert_eq!(target.0, "/a?url=http%3A%2F%2Fa%2F%C3%BC%3Fb%26c&n=7");
    }

    #[test]
    fn request_is_asked_about_in_parts() {
        let headers = [("x-a".to_owned(), "1, 2".to_owned())].into();
        let request = ExplainRequest { headers, ..ExplainRequest::to("http://a/") };
        let expected = "/a?url=http%3A%2F%2Fa%2F&method=GET&direction=Inbound&client=127.0.0.1&header=x-a%3A1%2C%202";
        assert_eq!(Target::new("/a").about(&request).0, expected);
    }
}
