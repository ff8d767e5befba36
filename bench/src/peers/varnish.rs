//! Varnish, which passes everything and caches nothing. It speaks no TLS.

use std::fs;

use anyhow::Result;

use super::{ORIGIN, Plan, Ports, is_installed, words};

pub(super) fn command(plan: &Plan<'_>, ports: Ports) -> Result<Option<Vec<String>>> {
    let (file, state) = (plan.folder.join("varnish.vcl"), plan.folder.join("varnish"));
    fs::write(
        &file,
        format!(
            "vcl 4.1;\nbackend default {{ .host = \"127.0.0.1\"; .port = \"{ORIGIN}\"; }}\nsub vcl_recv {{ return (pass); }}\n"
        ),
    )?;
    let (http, http2) = (format!("127.0.0.1:{},HTTP", ports.0), format!("127.0.0.1:{},HTTP", ports.http2()));
    let command = words(&[
        "varnishd",
        "-F",
        "-j",
        "none",
        "-T",
        "none",
        "-n",
        &state.display().to_string(),
        "-f",
        &file.display().to_string(),
        "-a",
        &http,
        "-a",
        &http2,
        "-s",
        "default=malloc,64m",
        "-p",
        "feature=+http2",
        "-p",
        "thread_pools=1",
        "-p",
        "timeout_idle=600",
    ]);
    Ok(is_installed("varnishd").then_some(command))
}
