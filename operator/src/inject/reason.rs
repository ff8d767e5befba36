//! Why a pod gets no sidecar.

/// Why a pod gets no sidecar, and what would be right. [`Reason::code`] is the reason of events and the `reason` in the stamp.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Reason {
    /// Neither the pod nor its namespace asked.
    #[error("neither the pod nor its namespace asked for a sidecar")]
    NotOptedIn,
    /// The kubelet runs the pod from a file.
    #[error("a static pod is run by the kubelet from a file, which admission can't change")]
    StaticPod,
    /// The pod opted out.
    #[error("the pod carries the annotation fetchr.sh/inject: disabled")]
    OptedOut,
    /// The pod shares the node's network.
    #[error("the pod has hostNetwork: true, where redirect rules and ports would be the node's; set it to false")]
    HostNetwork,
    /// The pod is for Windows.
    #[error("the pod is for Windows nodes, and the sidecar runs on Linux only")]
    Windows,
    /// No FetchrProxy selects the pod.
    #[error("no FetchrProxy selects the pod and the platform has none named default; create one in the pod's namespace")]
    NoProxy,
    /// The pod picks a FetchrProxy that does not exist.
    #[error("the annotation fetchr.sh/proxy names {name:?}, and there is no such FetchrProxy in the pod's namespace")]
    ProxyMissing {
        /// The name.
        name: String,
    },
    /// The namespace forbids what `fetchr-init` needs.
    #[error(
        "the namespace enforces the pod security standard {level}, which forbids the capability NET_ADMIN that \
         interception.mode Init of the FetchrProxy {proxy} needs; use mode Explicit"
    )]
    PodSecurity {
        /// The level, `baseline` or `restricted`.
        level: String,
        /// `namespace/name` of the proxy.
        proxy: String,
    },
    /// A container runs as the sidecar's user, so its traffic would pass by the sidecar.
    #[error("container {container} runs as user 2733, which is the sidecar's; use another runAsUser")]
    UserTaken {
        /// The container.
        container: String,
    },
    /// A container listens on a port of the sidecar.
    #[error("container {container} declares port {port}, which is the sidecar's; use another port")]
    PortTaken {
        /// The container.
        container: String,
        /// The port.
        port: i32,
    },
    /// A container has a name of ours.
    #[error("container {container} has a name that is fetchr's; rename it")]
    NameTaken {
        /// The container.
        container: String,
    },
    /// A container mounts a volume of ours, which may hold the sidecar's token.
    #[error("container {container} mounts the volume {volume}, which is the sidecar's alone; use a volume of another name")]
    VolumeTaken {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
    },
    /// A volume projects a token like the sidecar's.
    #[error("volume {volume} projects a token for the audience fetchr.sh, with which the sidecar's stream could be taken over")]
    TokenTaken {
        /// The volume.
        volume: String,
    },
    /// The pod could escape its sidecar, where it may not.
    #[error(
        "{what}, which lets it pass by the sidecar that its namespace requires; leave it out, or have the platform label the \
         namespace fetchr.sh/privileged-pods: allowed"
    )]
    Privileged {
        /// What of it.
        what: String,
    },
    /// A running sidecar would become something else.
    #[error("container {container} may only run the image {image}; delete the pod to have it made anew")]
    SidecarChanged {
        /// The container.
        container: String,
        /// The image that a sidecar would get now.
        image: String,
    },
}

/// All codes that a stamp can hold.
pub const REASONS: [&str; 12] = [
    "OptedOut",
    "HostNetwork",
    "Windows",
    "NoProxy",
    "ProxyMissing",
    "PodSecurity",
    "UserTaken",
    "PortTaken",
    "NameTaken",
    "VolumeTaken",
    "TokenTaken",
    "Privileged",
];

impl Reason {
    /// The reason in CamelCase.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotOptedIn => "NotOptedIn",
            Self::StaticPod => "StaticPod",
            Self::OptedOut => "OptedOut",
            Self::HostNetwork => "HostNetwork",
            Self::Windows => "Windows",
            Self::NoProxy => "NoProxy",
            Self::ProxyMissing { .. } => "ProxyMissing",
            Self::PodSecurity { .. } => "PodSecurity",
            Self::UserTaken { .. } => "UserTaken",
            Self::PortTaken { .. } => "PortTaken",
            Self::NameTaken { .. } => "NameTaken",
            Self::VolumeTaken { .. } => "VolumeTaken",
            Self::TokenTaken { .. } => "TokenTaken",
            Self::Privileged { .. } => "Privileged",
            Self::SidecarChanged { .. } => "SidecarChanged",
        }
    }

    /// Whether the pod asked for what can't work, so that running it without a sidecar would hide a mistake.
    pub fn is_conflict(&self) -> bool {
        matches!(
            self,
            Self::ProxyMissing { .. }
                | Self::PodSecurity { .. }
                | Self::UserTaken { .. }
                | Self::PortTaken { .. }
                | Self::NameTaken { .. }
                | Self::VolumeTaken { .. }
                | Self::TokenTaken { .. }
                | Self::Privileged { .. }
                | Self::SidecarChanged { .. }
        )
    }

    /// Whether the pod is told: not if it never asked, or if it can't be changed.
    pub fn is_stamped(&self) -> bool {
        !matches!(self, Self::NotOptedIn | Self::StaticPod)
    }
}
