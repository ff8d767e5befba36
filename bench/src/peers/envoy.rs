//! Envoy, from the package that `scripts/envoy/install` brings; `FETCHR_BENCH_ENVOY` says where it is.

use std::{env, fs};

use anyhow::Result;

use super::{ORIGIN, Plan, Ports, certificate, words};

const ENVOY: &str = "FETCHR_BENCH_ENVOY";

pub(super) fn command(plan: &Plan<'_>, ports: Ports) -> Result<Option<Vec<String>>> {
    let pem = certificate(plan.folder)?;
    let listeners: String = [
        listener(ports.0, "", ""),
        listener(ports.http2(), "", ""),
        listener(
            ports.tls(),
            "",
            &format!(
                "\n      transport_socket:\n        name: envoy.transport_sockets.tls\n        typed_config:\n          \
                 \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n          \
                 common_tls_context:\n            tls_params: {{tls_minimum_protocol_version: TLSv1_3}}\n            \
                 alpn_protocols: [h2, http/1.1]\n            \
                 tls_certificates: [{{certificate_chain: {{filename: {pem}}}, private_key: {{filename: {pem}}}}}]"
            ),
        ),
    ]
    .concat();
    with(plan, &listeners)
}

/// The command line of one with such listeners; None if it is not installed.
pub(crate) fn with(plan: &Plan<'_>, listeners: &str) -> Result<Option<Vec<String>>> {
    let Some(program) = env::var(ENVOY).ok().filter(|program| !program.is_empty()) else { return Ok(None) };
    let file = plan.folder.join("envoy.yaml");
    fs::write(
        &file,
        format!(
            "static_resources:\n  listeners:{listeners}\n  clusters:\n  - name: o\n    type: STATIC\n    load_assignment:\n      cluster_name: o\n      \
             endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {ORIGIN}}}}}}}}}]}}]\n"
        ),
    )?;
    let (file, workers) = (file.display().to_string(), plan.workers.to_string());
    Ok(Some(words(&[&program, "-c", &file, "--concurrency", &workers, "-l", "error", "--disable-hot-restart"])))
}

/// A listener with filters before the router, and more behind them.
pub(crate) fn listener(port: u16, filters: &str, more: &str) -> String {
    format!(
        "\n  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}\n    filter_chains:\n    - filters:\n      \
         - name: envoy.filters.network.http_connection_manager\n        typed_config:\n          \
         \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n          \
         stat_prefix: i\n          route_config: {{virtual_hosts: [{{name: v, domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: {{cluster: o}}}}]}}]}}\n          \
         http_filters:{filters}\n          - name: envoy.filters.http.router\n            typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}{more}"
    )
}
