//! What is added to the pod: two containers and their volumes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use crds::{
    FetchrProxy,
    plan::ObjectRef,
    proxy::{CacheDisk, FetchrProxySpec, InterceptionMode, OnNoConfig},
    scalar::Size,
};
use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, ExecAction,
        HTTPGetAction, KeyToPath, Lifecycle, LifecycleHandler, ObjectFieldSelector, PodSpec, Probe, ProjectedVolumeSource,
        ResourceRequirements, SeccompProfile, SecretProjection, SecurityContext, ServiceAccountTokenProjection, Volume,
        VolumeMount, VolumeProjection,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use wire::{env, speaker::Speakers};

use super::{Ask, INIT_CONTAINER, InjectContext, Injector, PROXY_CONTAINER, probes::Originals, proxy_ref};

/// User of the sidecar, whose traffic is never redirected.
pub(super) const PROXY_UID: i64 = 2733;
/// Port of intercepted inbound traffic.
pub(super) const INBOUND_PORT: i32 = 4610;
/// Port of intercepted outbound traffic.
pub(super) const OUTBOUND_PORT: i32 = 4611;
/// Port of the explicit forward proxy.
pub(super) const FORWARD_PORT: i32 = 4612;
/// Port of the admin interface.
pub(super) const ADMIN_PORT: i32 = 4620;

const STATE_VOLUME: &str = "fetchr-state";
const PLAN_VOLUME: &str = "fetchr-plan";
const TOKEN_VOLUME: &str = "fetchr-token";
const RUN_VOLUME: &str = "fetchr-run";
const SECRETS_VOLUME: &str = "fetchr-secrets";
const CACHE_VOLUME: &str = "fetchr-cache";
/// Volumes that only our containers may mount.
pub(super) const VOLUMES: [&str; 6] = [STATE_VOLUME, PLAN_VOLUME, TOKEN_VOLUME, RUN_VOLUME, SECRETS_VOLUME, CACHE_VOLUME];

/// Audience of the sidecar's token.
pub(super) const TOKEN_AUDIENCE: &str = "fetchr.sh";

/// Room for plans.
const PLANS: Size = Size::kib(64 << 10);

const STATE_DIR: &str = "/var/lib/fetchr";
const CACHE_DIR: &str = "/var/cache/fetchr";
const PLAN_DIR: &str = "/etc/fetchr/plan";
const SECRETS_DIR: &str = "/etc/fetchr/secrets";
const TOKEN_DIR: &str = "/var/run/secrets/fetchr.sh";
const PLAN_CONFIG_MAP: &str = "fetchr-plan";

/// All that decides what is added.
pub(super) struct Sidecar<'a> {
    pub(super) cx: &'a InjectContext<'a>,
    pub(super) proxy: &'a FetchrProxy,
    pub(super) ask: Ask,
    pub(super) inbound: &'a BTreeSet<i32>,
    pub(super) speakers: &'a Speakers,
    pub(super) probes: &'a Originals,
    /// Resources that our containers had before, if this pod was injected with the same settings.
    pub(super) kept: &'a BTreeMap<String, ResourceRequirements>,
}

/// Digest of all that decides how the sidecars of a proxy are injected, but for what later comes over the stream. A pod with
/// another one in its stamp is outdated.
pub fn settings_digest(proxy: &FetchrProxy, injector: &Injector, required: bool) -> String {
    let spec = &proxy.spec;
    let interception = &spec.interception;
    let secrets: Vec<_> = spec.secrets().into_iter().map(|(secret, keys)| (&secret.name, keys.names())).collect();
    let inputs = json!({
        "proxy": proxy_ref(proxy),
        "image": injector.image,
        "imagePullPolicy": injector.image_pull_policy,
        "operator": injector.operator_address,
        "version": injector.version,
        "required": required,
        "mode": interception.mode,
        "inbound": interception.inbound,
        "outboundPorts": interception.outbound.ports,
        "skipCIDRs": interception.outbound.skip_cidrs,
        "secrets": secrets,
        "cacheSize": spec.cache.disk.as_ref().map(|disk| disk.size),
        "workers": spec.workers,
        "resources": spec.resources,
        "metricsPort": spec.telemetry.metrics_port,
        "logFormat": spec.logging.format,
        "drain": spec.drain,
        "startup": spec.startup,
    });
    let digest = Sha256::digest(inputs.to_string().as_bytes());
    digest[..8].iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a String takes everything");
        hex
    })
}

impl Sidecar<'_> {
    /// Adds containers and volumes. Ours go first, in one piece: once the redirect rules stand, whatever starts needs the
    /// sidecar, the application's own init containers and native sidecars too.
    pub(super) fn add_to(&self, spec: &mut PodSpec) {
        let init_mode = self.proxy.spec.interception.mode == InterceptionMode::Init;
        let ours = init_mode.then(|| self.init_container()).into_iter().chain([self.proxy_container()]);
        let others = spec.init_containers.take().unwrap_or_default();
        spec.init_containers = Some(ours.chain(others).collect());
        let volumes = spec.volumes.get_or_insert_default();
        volumes.extend([state_volume(&self.proxy.spec), plan_volume(&proxy_ref(self.proxy)), token_volume()]);
        volumes.extend(init_mode.then(run_volume));
        volumes.extend(self.has_secrets().then(|| secrets_volume(&self.proxy.spec)));
        volumes.extend(self.disk().map(|disk| empty_dir(CACHE_VOLUME, &disk.volume().to_string())));
    }

    fn init_container(&self) -> Container {
        let interception = &self.proxy.spec.interception;
        let env = [
            value(env::PROXY_UID, PROXY_UID),
            value(env::INBOUND_PORT, INBOUND_PORT),
            value(env::OUTBOUND_PORT, OUTBOUND_PORT),
            value(env::ADMIN_PORT, ADMIN_PORT),
            value(env::METRICS_PORT, self.proxy.spec.telemetry.metrics_port),
            list(env::INBOUND_PORTS, self.inbound),
            list(env::SKIP_INBOUND_PORTS, &interception.inbound.skip_ports),
            list(env::OUTBOUND_PORTS, &interception.outbound.ports),
            list(env::SKIP_CIDRS, &interception.outbound.skip_cidrs),
        ];
        let quantity = |name: &str, value: &str| (name.to_owned(), Quantity(value.to_owned()));
        let resources = ResourceRequirements {
            requests: Some([quantity("cpu", "10m"), quantity("memory", "16Mi")].into()),
            limits: Some([quantity("memory", "64Mi")].into()),
            ..Default::default()
        };
        Container {
            name: INIT_CONTAINER.to_owned(),
            command: Some(vec!["fetchr-init".to_owned()]),
            env: Some(env.into_iter().flatten().collect()),
            resources: Some(self.with_kept(INIT_CONTAINER, resources)),
            security_context: Some(SecurityContext {
                run_as_user: Some(0),
                run_as_group: Some(0),
                run_as_non_root: Some(false),
                ..confined(&["NET_ADMIN", "NET_RAW"])
            }),
            // iptables-legacy takes its lock in /run.
            volume_mounts: Some(vec![mount(RUN_VOLUME, "/run", false)]),
            ..self.container()
        }
    }

    fn proxy_container(&self) -> Container {
        let spec = &self.proxy.spec;
        let port = spec.telemetry.metrics_port;
        let metrics = ContainerPort {
            name: Some("fetchr-metrics".to_owned()),
            container_port: port,
            protocol: Some("TCP".to_owned()),
            ..Default::default()
        };
        let mut mounts =
            vec![mount(STATE_VOLUME, STATE_DIR, false), mount(PLAN_VOLUME, PLAN_DIR, true), mount(TOKEN_VOLUME, TOKEN_DIR, true)];
        mounts.extend(self.has_secrets().then(|| mount(SECRETS_VOLUME, SECRETS_DIR, true)));
        mounts.extend(self.disk().map(|_| mount(CACHE_VOLUME, CACHE_DIR, false)));
        Container {
            name: PROXY_CONTAINER.to_owned(),
            command: Some(vec!["fetchr-proxy".to_owned(), "run".to_owned()]),
            restart_policy: Some("Always".to_owned()),
            env: Some(self.proxy_env()),
            ports: Some(vec![metrics]),
            // Asked each second, so that the application starts at most that late; given up after the time that the sidecar
            // itself waits for its configuration, and as long again.
            startup_probe: Some(Probe {
                period_seconds: Some(1),
                timeout_seconds: Some(1),
                failure_threshold: Some(startup_tries(spec.startup.config_timeout.0)),
                ..asks(port, "/readyz")
            }),
            readiness_probe: Some(Probe {
                period_seconds: Some(2),
                timeout_seconds: Some(2),
                failure_threshold: Some(3),
                ..asks(port, "/readyz")
            }),
            // Generous: a restart costs every connection, so only a sidecar that hangs for a minute is ended.
            liveness_probe: Some(Probe {
                period_seconds: Some(10),
                timeout_seconds: Some(5),
                failure_threshold: Some(6),
                ..asks(port, "/livez")
            }),
            lifecycle: Some(Lifecycle { pre_stop: Some(exec(&["fetchr-proxy", "drain"])), ..Default::default() }),
            resources: Some(self.with_kept(PROXY_CONTAINER, spec.resources.clone())),
            security_context: Some(SecurityContext {
                run_as_user: Some(PROXY_UID),
                run_as_group: Some(PROXY_UID),
                run_as_non_root: Some(true),
                ..confined(&[])
            }),
            volume_mounts: Some(mounts),
            ..self.container()
        }
    }

    fn has_secrets(&self) -> bool {
        !self.proxy.spec.secrets().is_empty()
    }

    fn disk(&self) -> Option<&CacheDisk> {
        self.proxy.spec.cache.disk.as_ref()
    }

    fn container(&self) -> Container {
        Container {
            image: Some(self.cx.injector.image.clone()),
            image_pull_policy: Some(self.cx.injector.image_pull_policy.clone()),
            ..Default::default()
        }
    }

    fn proxy_env(&self) -> Vec<EnvVar> {
        let (cx, spec) = (self.cx, &self.proxy.spec);
        let platform_default = if self.ask == Ask::Required { OnNoConfig::Block } else { OnNoConfig::PassThrough };
        let on_no_config = spec.startup.on_no_config.unwrap_or(platform_default);
        let probes = (!self.probes.is_empty()).then(|| json!(self.probes).to_string());
        let env = [
            from_field(env::POD_NAMESPACE, "metadata.namespace"),
            from_field(env::POD_NAME, "metadata.name"),
            from_field(env::POD_UID, "metadata.uid"),
            from_field(env::POD_IPS, "status.podIPs"),
            value(env::PROXY, proxy_ref(self.proxy)),
            value(env::WORKLOAD, cx.workload),
            value(env::OPERATOR, &cx.injector.operator_address),
            value(env::TOKEN_FILE, format_args!("{TOKEN_DIR}/token")),
            value(env::CA_BUNDLE, cx.ca_bundle),
            value(env::PLAN_KEYS, cx.plan_keys.join(",")),
            value(env::PLAN_DIR, PLAN_DIR),
            value(env::SECRETS_DIR, if self.has_secrets() { SECRETS_DIR } else { "" }),
            value(env::STATE_DIR, STATE_DIR),
            self.disk().and_then(|_| value(env::CACHE_DIR, CACHE_DIR)),
            self.disk().and_then(|disk| value(env::CACHE_LIMIT, disk.size)),
            value(env::INTERCEPT, word(spec.interception.mode)),
            value(env::CONFIG_TIMEOUT, spec.startup.config_timeout),
            value(env::ON_NO_CONFIG, word(on_no_config)),
            value(env::DRAIN_DELAY, spec.drain.delay),
            value(env::DRAIN_TIMEOUT, spec.drain.timeout),
            value(env::WORKERS, workers(spec.workers, &spec.resources)),
            value(env::LOG_LEVEL, word(spec.logging.level)),
            value(env::LOG_FORMAT, word(spec.logging.format)),
            value(env::ADMIN_PORT, ADMIN_PORT),
            value(env::METRICS_PORT, spec.telemetry.metrics_port),
            value(env::INBOUND_PORT, INBOUND_PORT),
            value(env::OUTBOUND_PORT, OUTBOUND_PORT),
            value(env::PORT_SPEAKERS, self.speakers),
            probes.and_then(|probes| value(env::PROBES, probes)),
        ];
        env.into_iter().flatten().collect()
    }

    fn with_kept(&self, container: &str, ours: ResourceRequirements) -> ResourceRequirements {
        let Some(kept) = self.kept.get(container) else { return ours };
        let fill = |ours: Option<BTreeMap<String, Quantity>>, kept: &Option<BTreeMap<String, Quantity>>| {
            let mut all = kept.clone().unwrap_or_default();
            all.extend(ours.unwrap_or_default());
            (!all.is_empty()).then_some(all)
        };
        ResourceRequirements { limits: fill(ours.limits, &kept.limits), requests: fill(ours.requests, &kept.requests), ..ours }
    }
}

/// Threads: what the proxy says, else the CPU limit rounded up, else one.
fn workers(workers: Option<i32>, resources: &ResourceRequirements) -> i32 {
    let limit = resources.limits.as_ref().and_then(|limits| limits.get("cpu"));
    workers.or_else(|| limit.and_then(|limit| whole_cpus(&limit.0))).unwrap_or(1)
}

/// CPUs of a quantity such as `1500m`, `2` or `0.5`, rounded up, 1 to 64.
fn whole_cpus(quantity: &str) -> Option<i32> {
    let cpus = match quantity.strip_suffix('m') {
        Some(millis) => millis.parse::<f64>().ok()? / 1000.0,
        None => quantity.parse::<f64>().ok()?,
    };
    Some(cpus.ceil().clamp(1.0, 64.0) as i32)
}

fn startup_tries(config_timeout: std::time::Duration) -> i32 {
    let seconds = super::termination::whole_seconds(config_timeout).clamp(10, 1800);
    i32::try_from(seconds * 2).unwrap_or(3600)
}

/// A variable with this value; `$` is doubled, for Kubernetes would expand `$(NAME)`. None: empty, so the program's default holds.
#[expect(clippy::needless_pass_by_value, reason = "numbers and formats are written in place")]
fn value(name: &str, value: impl ToString) -> Option<EnvVar> {
    let value = value.to_string();
    let escaped = || Some(value.replace('$', "$$"));
    (!value.is_empty()).then(|| EnvVar { name: name.to_owned(), value: escaped(), ..Default::default() })
}

/// Reverts the doubling of [`value`].
pub(super) fn unescape(value: &str) -> String {
    value.replace("$$", "$")
}

fn list<T: ToString>(name: &str, items: impl IntoIterator<Item = T>) -> Option<EnvVar> {
    value(name, items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(","))
}

fn from_field(name: &str, path: &str) -> Option<EnvVar> {
    let field = ObjectFieldSelector { api_version: Some("v1".to_owned()), field_path: path.to_owned() };
    let source = EnvVarSource { field_ref: Some(field), ..Default::default() };
    Some(EnvVar { name: name.to_owned(), value_from: Some(source), ..Default::default() })
}

/// The word that stands for an enum's variant in a document.
fn word(variant: impl serde::Serialize) -> String {
    json!(variant).as_str().unwrap_or_default().to_owned()
}

fn asks(port: i32, path: &str) -> Probe {
    let action = HTTPGetAction { port: IntOrString::Int(port), path: Some(path.to_owned()), ..Default::default() };
    Probe { http_get: Some(action), ..Default::default() }
}

fn exec(command: &[&str]) -> LifecycleHandler {
    let command = Some(command.iter().map(|&word| word.to_owned()).collect());
    LifecycleHandler { exec: Some(ExecAction { command }), ..Default::default() }
}

/// What the `restricted` pod security standard asks for, with these capabilities on top.
fn confined(capabilities: &[&str]) -> SecurityContext {
    let add = (!capabilities.is_empty()).then(|| capabilities.iter().map(|&name| name.to_owned()).collect());
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { add, drop: Some(vec!["ALL".to_owned()]) }),
        read_only_root_filesystem: Some(true),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..Default::default() }),
        ..Default::default()
    }
}

fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..Default::default()
    }
}

/// For plans, for a file of answers that is being imported (no more than the cache holds), and for an archive that is a folder in it.
fn state_volume(spec: &FetchrProxySpec) -> Volume {
    let snapshots = spec.cache.persistence.map_or(0, |persistence| 2 * persistence.max_bytes.0);
    let size = Size(PLANS.0 + spec.cache.memory.size.0 + snapshots);
    empty_dir(STATE_VOLUME, &size.to_string())
}

fn run_volume() -> Volume {
    empty_dir(RUN_VOLUME, "1Mi")
}

fn empty_dir(name: &str, size: &str) -> Volume {
    let source = EmptyDirVolumeSource { size_limit: Some(Quantity(size.to_owned())), ..Default::default() };
    Volume { name: name.to_owned(), empty_dir: Some(source), ..Default::default() }
}

/// The cold-start plan. Optional: the first pods of a namespace start before it is written.
fn plan_volume(proxy: &ObjectRef) -> Volume {
    let key = format!("{}.{}", proxy.namespace, proxy.name);
    let source = ConfigMapVolumeSource {
        name: PLAN_CONFIG_MAP.to_owned(),
        items: Some(vec![KeyToPath { key: key.clone(), path: key, ..Default::default() }]),
        optional: Some(true),
        ..Default::default()
    };
    Volume { name: PLAN_VOLUME.to_owned(), config_map: Some(source), ..Default::default() }
}

/// The Secrets that the proxy names, one folder each. Not optional: a pod whose certificate is missing does not start, and its events
/// name the Secret. The kubelet goes on writing what changes.
fn secrets_volume(spec: &FetchrProxySpec) -> Volume {
    let sources = spec.secrets().into_iter().map(|(secret, keys)| {
        let item = |key: &&str| KeyToPath { key: (*key).to_owned(), path: format!("{}/{key}", secret.name), mode: None };
        let items = Some(keys.names().iter().map(item).collect());
        let projection = SecretProjection { name: secret.name.clone(), items, optional: Some(false) };
        VolumeProjection { secret: Some(projection), ..Default::default() }
    });
    let source = ProjectedVolumeSource { sources: Some(sources.collect()), ..Default::default() };
    Volume { name: SECRETS_VOLUME.to_owned(), projected: Some(source), ..Default::default() }
}

fn token_volume() -> Volume {
    let token = ServiceAccountTokenProjection {
        audience: Some(TOKEN_AUDIENCE.to_owned()),
        expiration_seconds: Some(3600),
        path: "token".to_owned(),
    };
    let source = ProjectedVolumeSource {
        sources: Some(vec![VolumeProjection { service_account_token: Some(token), ..Default::default() }]),
        ..Default::default()
    };
    Volume { name: TOKEN_VOLUME.to_owned(), projected: Some(source), ..Default::default() }
}
