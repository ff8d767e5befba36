//! Who speaks first on a port of the application, as the port's name says by Kubernetes' custom: `http`, `http-admin`, `mysql`.

use std::{collections::BTreeMap, fmt, str::FromStr};

/// Who speaks first on a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Speaker {
    /// The client, as in HTTP and TLS. Nobody has to find out.
    Client,
    /// Maybe the server, as in many protocols that are not HTTP.
    Server,
}

impl Speaker {
    /// By the name of a port: its protocol, and maybe `-` and more. Nothing for a name that says no protocol.
    pub fn of_port_name(name: &str) -> Option<Self> {
        let protocol = name.split('-').next().unwrap_or_default();
        match protocol {
            "http" | "http2" | "h2c" | "grpc" | "https" | "tls" | "ws" | "wss" | "redis" | "mongo" | "postgres" => {
                Some(Self::Client)
            }
            "tcp" | "mysql" | "smtp" | "ftp" | "ssh" | "imap" | "pop3" => Some(Self::Server),
            _ => None,
        }
    }
}

/// What is known of ports, as a variable of the environment: `3306=server,8080=client`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Speakers(pub BTreeMap<u16, Speaker>);

impl fmt::Display for Speakers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (port, speaker)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let word = if *speaker == Speaker::Client { "client" } else { "server" };
            write!(f, "{comma}{port}={word}")?;
        }
        Ok(())
    }
}

impl FromStr for Speakers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let entry = |entry: &str| {
            let (port, speaker) = entry.split_once('=')?;
            let speaker = match speaker {
                "client" => Speaker::Client,
                "server" => Speaker::Server,
                _ => return None,
            };
            Some((port.parse().ok()?, speaker))
        };
        let entries = text.split(',').filter(|text| !text.is_empty());
        let read = entries.map(|text| entry(text).ok_or_else(|| format!("{text:?} is not PORT=client or PORT=server")));
        read.collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_a_port_says_its_protocol_or_nothing() {
        for name in ["http", "http2-api", "grpc-web", "https", "ws"] {
            assert_eq!(Speaker::of_port_name(name), Some(Speaker::Client), "{name}");
        }
        assert_eq!(Speaker::of_port_name("tcp-admin"), Some(Speaker::Server));
        for name in ["web", "metrics", "httpx", "", "-http"] {
            assert_eq!(Speaker::of_port_name(name), None, "{name}");
        }
    }

    #[test]
    fn ports_survive_the_environment() {
        let ports = Speakers([(3306, Speaker::Server), (8080, Speaker::Client)].into());
        assert_eq!(ports.to_string(), "3306=server,8080=client");
        assert_eq!(ports.to_string().parse(), Ok(ports));
        assert_eq!("".parse(), Ok(Speakers::default()));
        for wrong in ["80", "80=x", "x=client", "99999=client"] {
            assert!(wrong.parse::<Speakers>().is_err(), "{wrong}");
        }
    }
}
