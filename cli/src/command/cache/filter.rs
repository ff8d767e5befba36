//! Which of the stored answers are listed.

use super::admin::Target;

/// The flags. Each leaves answers out; without any, all are listed.
#[derive(clap::Args)]
pub(super) struct Filter {
    /// URLs that begin so
    #[arg(long, env = "FETCHR_PREFIX", value_name = "URL")]
    prefix: Option<String>,
    /// Answers that the origin gave this tag
    #[arg(long, env = "FETCHR_TAG", value_name = "TAG")]
    tag: Option<String>,
    /// Answers that this policy had stored
    #[arg(long, env = "FETCHR_POLICY", value_name = "NAMESPACE/NAME")]
    policy: Option<String>,
}

impl Filter {
    /// Adds it to the query of a path of the admin port.
    pub(super) fn ask(&self, target: Target) -> Target {
        let Self { prefix, tag, policy } = self;
        target.with("prefix", prefix.as_ref()).with("tag", tag.as_ref()).with("policy", policy.as_ref())
    }
}
