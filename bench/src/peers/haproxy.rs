//! HAProxy.

use std::fs;

use anyhow::Result;

use super::{ORIGIN, Plan, Ports, certificate, is_installed, words};

pub(super) fn command(plan: &Plan<'_>, ports: Ports) -> Result<Option<Vec<String>>> {
    let (pem, file) = (certificate(plan.folder)?, plan.folder.join("haproxy.cfg"));
    fs::write(
        &file,
        format!(
            "global\n nbthread {}\n maxconn {}\n ssl-default-bind-options ssl-min-ver TLSv1.3\ndefaults\n mode http\n timeout connect 5s\n timeout client 600s\n \
             timeout server 60s\nfrontend f\n bind 127.0.0.1:{}\n bind 127.0.0.1:{} proto h2\n bind 127.0.0.1:{} ssl crt {pem} alpn h2,http/1.1\n default_backend b\n\
             backend b\n http-reuse always\n server o 127.0.0.1:{ORIGIN}\n",
            plan.workers,
            plan.connections + 96,
            ports.0,
            ports.http2(),
            ports.tls()
        ),
    )?;
    Ok(is_installed("haproxy").then(|| words(&["haproxy", "-db", "-f", &file.display().to_string()])))
}
