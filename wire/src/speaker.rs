//! Who speaks first on a port, as its name says by Kubernetes' custom, `http`, `http-admin`, `mysql`, or its `appProtocol`.

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

/// What is spoken on a port of a Service, as far as it matters on the way there.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Spoken {
    /// The client speaks first.
    ClientFirst,
    /// Maybe the server speaks first.
    ServerFirst,
    /// HTTP/2 in clear, with prior knowledge.
    H2c,
}

impl Spoken {
    /// By the port's `appProtocol`, or if that says nothing that is known, by its name.
    pub fn of_service_port(app_protocol: Option<&str>, name: Option<&str>) -> Option<Self> {
        app_protocol.and_then(Self::of_app_protocol).or_else(|| name.and_then(Self::of_name))
    }

    /// Who speaks first.
    pub fn speaker(self) -> Speaker {
        match self {
            Self::ClientFirst | Self::H2c => Speaker::Client,
            Self::ServerFirst => Speaker::Server,
        }
    }

    /// Names of Kubernetes have a prefix, those of IANA have none.
    fn of_app_protocol(word: &str) -> Option<Self> {
        let word = word.strip_prefix("kubernetes.io/").unwrap_or(word).to_ascii_lowercase();
        match word.as_str() {
            "mongodb" | "postgresql" | "grpc-web" => Some(Self::ClientFirst),
            // What another vendor's prefix or a further word means is not known.
            _ if word.contains(['/', '-']) => None,
            _ => Self::of_name(&word),
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        let (protocol, more) = name.split_once('-').unwrap_or((name, ""));
        match Speaker::of_port_name(name)? {
            // gRPC-Web goes over HTTP/1.1 as well.
            Speaker::Client if matches!(protocol, "h2c" | "http2" | "grpc") && more != "web" => Some(Self::H2c),
            Speaker::Client => Some(Self::ClientFirst),
            Speaker::Server => Some(Self::ServerFirst),
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
    fn port_of_a_service_speaks_as_its_app_protocol_says_or_else_its_name() {
        use Spoken::{ClientFirst, H2c, ServerFirst};
        for (app_protocol, name, expected) in [
            (Some("kubernetes.io/h2c"), None, Some(H2c)),
            (Some("kubernetes.io/ws"), Some("tcp"), Some(ClientFirst)),
            (Some("http"), None, Some(ClientFirst)),
            (Some("https"), None, Some(ClientFirst)),
            (Some("grpc"), None, Some(H2c)),
            (Some("MySQL"), Some("http"), Some(ServerFirst)),
            (Some("postgresql"), None, Some(ClientFirst)),
            (Some("example.com/mine"), Some("smtp"), Some(ServerFirst)),
            (Some("tcp-ish"), None, None),
            (None, Some("grpc-api"), Some(H2c)),
            (None, Some("grpc-web"), Some(ClientFirst)),
            (None, Some("tcp-replication"), Some(ServerFirst)),
            (None, Some("metrics"), None),
            (None, None, None),
        ] {
            assert_eq!(Spoken::of_service_port(app_protocol, name), expected, "{app_protocol:?} {name:?}");
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
