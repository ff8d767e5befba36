//! What a person wants to know when a proxy starts: what listens where, and which policies are in force.

use crds::{
    FetchrPolicy, FetchrProxy,
    document::Documents,
    plan::{AttachedPolicy, Compiled, Identity, Inputs, compile},
    proxy::Listener,
};

use super::reference;
use crate::{
    documents::{self, Warning},
    output::{Paint, Table},
};

/// All of it.
pub(super) struct Banner {
    proxy: String,
    listeners: Vec<Listener>,
    policies: Vec<AttachedPolicy>,
    /// Policies of the documents that are not for this proxy.
    others: Vec<String>,
    warnings: Vec<Warning>,
    admin_port: u16,
    metrics_port: u16,
}

impl Banner {
    /// From the documents that will be run.
    pub(super) fn new(
        documents: &Documents,
        proxy: &FetchrProxy,
        identity: &Identity,
        admin_port: u16,
        metrics_port: Option<u16>,
    ) -> Self {
        let own = reference(proxy);
        let Compiled { plans, .. } = compile(&Inputs::of_documents(&documents.proxies, &documents.policies));
        let plan =
            plans.into_iter().find(|(key, _)| key.proxy == own && key.pod_namespace == own.namespace).map(|(_, plan)| plan);
        let policies = plan.map(|plan| plan.policies).unwrap_or_default();
        let policies: Vec<_> = policies.into_iter().filter(|policy| identity.has(&policy.attachment)).collect();
        let in_force = |policy: &&FetchrPolicy| {
            !policies.iter().any(|attached| attached.policy.name == *policy.metadata.name.as_deref().unwrap_or_default())
        };
        let others = documents.policies.iter().filter(in_force).filter_map(|policy| policy.metadata.name.clone()).collect();
        let configured = u16::try_from(proxy.spec.telemetry.metrics_port).unwrap_or_default();
        Self {
            proxy: own.to_string(),
            listeners: proxy.spec.interception.listeners.clone(),
            others,
            policies,
            warnings: documents::compare(documents, ""),
            admin_port,
            metrics_port: metrics_port.unwrap_or(configured),
        }
    }

    /// Text for a terminal, else one line of the log.
    pub(super) fn show(&self, terminal: bool, paint: Paint) {
        if terminal {
            eprint!("{}", self.render(paint));
            return;
        }
        let listeners: Vec<String> =
            self.listeners.iter().map(|listener| format!("{} -> {}", address(listener), target(listener))).collect();
        let policies: Vec<String> = self.policies.iter().map(|policy| policy.policy.to_string()).collect();
        tracing::info!(proxy = self.proxy, ?listeners, ?policies, not_in_force = ?self.others, "Starting.");
        for warning in &self.warnings {
            tracing::warn!(reason = warning.reason, "{}", warning.at);
        }
    }

    fn render(&self, paint: Paint) -> String {
        let mut text = format!("{} {}\n\n", paint.strong("FetchrProxy"), self.proxy);
        let mut listeners = Table::new(&["LISTENS ON", "FORWARDS TO", "NAME", "DIRECTION"]);
        for listener in &self.listeners {
            listeners.row(vec![address(listener), target(listener), listener.name.clone(), format!("{:?}", listener.direction)]);
        }
        listeners.row(vec![
            format!("127.0.0.1:{}", self.metrics_port),
            "/metrics /livez /readyz".into(),
            "metrics".into(),
            "-".into(),
        ]);
        listeners.row(vec![format!("127.0.0.1:{}", self.admin_port), "/config".into(), "admin".into(), "-".into()]);
        text.push_str(&format!("{listeners}\n"));
        text.push_str(&self.render_policies());
        for warning in &self.warnings {
            text.push_str(&documents::render(&warning.at, "warning", paint));
        }
        text
    }

    fn render_policies(&self) -> String {
        if self.policies.is_empty() {
            return "No policy is in force: requests pass as they are.\n\n".to_owned();
        }
        let mut table = Table::new(&["POLICY", "ATTACHED TO", "DIRECTION", "RULES"]);
        for policy in &self.policies {
            let rules: Vec<String> = policy
                .rules
                .iter()
                .map(|rule| {
                    let sections: Vec<&str> = rule.sections().iter().map(|section| section.name).collect();
                    format!("{} ({})", rule.name, sections.join(", "))
                })
                .collect();
            table.row(vec![
                policy.policy.to_string(),
                policy.attachment.to_string(),
                format!("{:?}", policy.direction),
                rules.join(", "),
            ]);
        }
        let others = match self.others.as_slice() {
            [] => String::new(),
            others => format!("Not for this proxy: {}\n", others.join(", ")),
        };
        format!("{table}{others}\n")
    }
}

fn address(listener: &Listener) -> String {
    if listener.address.contains(':') {
        format!("[{}]:{}", listener.address, listener.port)
    } else {
        format!("{}:{}", listener.address, listener.port)
    }
}

fn target(listener: &Listener) -> String {
    listener.upstream.clone().unwrap_or_else(|| "where the request says (forward proxy)".to_owned())
}
