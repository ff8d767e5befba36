//! A request that is imagined, by the flags that all commands share which ask about one.

use std::{collections::BTreeMap, net::IpAddr};

use clap::ValueEnum;
use crds::policy::Direction;
use sidecar::ask::ExplainRequest;

/// Which request.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct RequestArgs {
    /// The URL with the host and port that clients ask for, such as http://shop.example/products?page=1; a path alone is asked of localhost
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

/// Which way a request goes.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Way {
    Inbound,
    Outbound,
}

impl RequestArgs {
    /// The URL as it was given.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The request, with a method.
    pub(crate) fn with(&self, method: &str) -> ExplainRequest {
        let url = if self.url.starts_with('/') { format!("http://localhost{}", self.url) } else { self.url.clone() };
        let direction = match self.direction {
            Way::Inbound => Direction::Inbound,
            Way::Outbound => Direction::Outbound,
        };
        let (method, headers) = (method.to_ascii_uppercase(), merged(&self.headers));
        ExplainRequest { direction, method, headers, client: self.client_ip, ..ExplainRequest::to(url) }
    }
}

/// Reads a header field.
pub(crate) fn field(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("a header field is written as `name: value`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Fields that come twice are one list, as HTTP reads them.
fn merged(fields: &[(String, String)]) -> BTreeMap<String, String> {
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in fields {
        let all = headers.entry(name.to_ascii_lowercase()).and_modify(|all| *all = format!("{all}, {value}"));
        all.or_insert_with(|| value.clone());
    }
    headers
}
