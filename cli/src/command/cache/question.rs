//! A request that is imagined, as the admin port is asked about it.

use std::net::IpAddr;

use super::admin::Target;
use crate::command::explain::{Way, field, merged};

/// Which request.
#[derive(clap::Args)]
pub(super) struct Question {
    /// The URL, with the port that clients ask for, such as http://localhost:8080/products?page=1; a path alone is asked of localhost
    url: String,
    /// A header field as `name: value`; may be repeated
    #[arg(short = 'H', long = "header", env = "FETCHR_HEADER", value_delimiter = '\n', value_name = "NAME: VALUE", value_parser = field)]
    headers: Vec<(String, String)>,
    /// Whether the request comes to the application or from it
    #[arg(
        long,
        env = "FETCHR_DIRECTION",
        value_enum,
        default_value = "inbound",
        hide_possible_values = true,
        value_name = "inbound|outbound"
    )]
    direction: Way,
    /// Address of the client
    #[arg(long, env = "FETCHR_CLIENT_IP", value_name = "IP", default_value = "127.0.0.1")]
    client_ip: IpAddr,
}

impl Question {
    /// The URL as it was given.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// A path of the admin port, with the request as its query.
    pub(super) fn ask(&self, path: &str) -> Target {
        let url = if self.url.starts_with('/') { format!("http://localhost{}", self.url) } else { self.url.clone() };
        let direction = crds::policy::Direction::from(self.direction);
        let target = Target::new(path).with("url", Some(url)).with("direction", Some(format!("{direction:?}")));
        let headers = merged(&self.headers);
        headers.iter().fold(target.with("client", Some(self.client_ip)), |target, (name, value)| {
            target.with("header", Some(format!("{name}:{value}")))
        })
    }
}
