//! The field `archive`: where sidecars keep what has to outlive them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tls::{FILE, SecretKeys, SecretRef};
use crate::{
    check::check_upstream,
    problems::{FieldPath, Problems},
    rule::Rule,
};

const OF_ITS_BACKEND: Rule = Rule::new(
    "has(self.file) == (self.backend == 'File') && has(self.s3) == (self.backend == 'S3')",
    "backend File needs file and nothing else, and S3 needs s3",
);
const SECRET_OR_FILES: Rule = Rule::new(
    "has(self.secretRef) ? !has(self.accessKeyIDFile) && !has(self.secretAccessKeyFile) : has(self.accessKeyIDFile) && \
     has(self.secretAccessKeyFile)",
    "an access key comes from either secretRef, in a pod, or accessKeyIDFile and secretAccessKeyFile, standalone",
);

/// Pattern of the beginning of keys; what stands in braces is replaced.
const PREFIX: &str = r"^([A-Za-z0-9._={}-]+/)*$";
/// What may stand in braces.
const PLACES: [&str; 2] = ["namespace", "workload"];

/// An object store: a folder, or a bucket.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [OF_ITS_BACKEND]))]
#[serde(rename_all = "camelCase")]
pub struct Archive {
    /// What kind of store it is.
    pub backend: ArchiveBackend,
    /// The folder of backend File.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<ArchiveFile>,
    /// The bucket of backend S3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<ArchiveS3>,
    /// What all keys begin with, ending in a slash: `{namespace}` is the pod's, `{workload}` such as `Deployment/web`. Default
    /// `{namespace}/{workload}/`.
    #[serde(default = "default_prefix")]
    #[schemars(length(max = 256), regex(pattern = PREFIX))]
    pub prefix: String,
}

/// What kind of store an archive is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum ArchiveBackend {
    /// A folder of the machine, or of a volume that is mounted into the sidecar.
    File,
    /// A bucket of S3, or of what speaks like it.
    S3,
}

/// A folder.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveFile {
    /// Its absolute path. It is made if it is missing.
    #[schemars(length(min = 2, max = 1024), regex(pattern = r"^/[^\x00-\x1f]+$"))]
    pub path: String,
}

/// A bucket.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveS3 {
    /// Its name.
    #[schemars(length(min = 3, max = 63), regex(pattern = "^[a-z0-9][a-z0-9.-]*[a-z0-9]$"))]
    pub bucket: String,
    /// Its region, such as `eu-central-1`. None: that of the sidecar's environment; with an endpoint us-east-1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[a-z0-9-]+$"))]
    pub region: Option<String>,
    /// Where it is, such as `http://minio.shop.svc:9000`. None: at AWS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^https?://[^/?#@\x00-\x20]+/?$"))]
    pub endpoint: Option<String>,
    /// Whether the bucket's name stands in the path instead of the host. None: Enabled if there is an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<PathStyle>,
    /// Who asks. None: whoever the AWS SDK finds, such as a service account by web identity (IRSA).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<ArchiveS3Credentials>,
}

/// Whether the bucket's name stands in the path.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum PathStyle {
    /// `http://minio:9000/bucket/key`.
    Enabled,
    /// `https://bucket.s3.eu-central-1.amazonaws.com/key`.
    Disabled,
}

/// An access key, which is read anew every few minutes.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [SECRET_OR_FILES]))]
#[serde(rename_all = "camelCase")]
pub struct ArchiveS3Credentials {
    /// In a pod: a Secret of the pod's namespace with the keys `accessKeyID` and `secretAccessKey`. Admission mounts it, so it holds for
    /// pods that are created from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// Standalone: a file with the key's id; a line feed at its end does not count.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "accessKeyIDFile")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = FILE))]
    pub access_key_id_file: Option<String>,
    /// Standalone: a file with the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = FILE))]
    pub secret_access_key_file: Option<String>,
}

fn default_prefix() -> String {
    "{namespace}/{workload}/".to_owned()
}

impl Archive {
    pub(super) fn check(&self, at: &FieldPath, problems: &mut Problems) {
        let is = |backend| self.backend == backend;
        let holds = self.file.is_some() == is(ArchiveBackend::File) && self.s3.is_some() == is(ArchiveBackend::S3);
        OF_ITS_BACKEND.check(holds, at, problems);
        self.check_prefix(&at.field("prefix"), problems);
        let (file, s3) = (at.field("file"), at.field("s3"));
        if let Some(path) = self.file.as_ref().map(|file| &file.path).filter(|path| path.split('/').any(|part| part == "..")) {
            problems.add(&file.field("path"), format!("{path} leads back: write it without .."));
        }
        let Some(bucket) = &self.s3 else { return };
        if let Some(endpoint) = &bucket.endpoint {
            check_upstream(endpoint, &s3.field("endpoint"), problems);
        }
        if let Some(credentials) = &bucket.credentials {
            let files = (credentials.access_key_id_file.is_some(), credentials.secret_access_key_file.is_some());
            let needs = credentials.secret_ref.is_none();
            SECRET_OR_FILES.check(files == (needs, needs), &s3.field("credentials"), problems);
        }
    }

    fn check_prefix(&self, at: &FieldPath, problems: &mut Problems) {
        if self.prefix.split('/').any(|segment| matches!(segment, "." | "..")) {
            problems.add(at, "neither . nor .. may stand between its slashes");
        }
        let known: BTreeMap<_, _> = PLACES.iter().map(|name| (*name, "")).collect();
        if let Err(found) = filled(&self.prefix, &known) {
            problems.add(at, format!("{found} can't be replaced: write {{namespace}} or {{workload}}"));
        }
    }

    /// What all keys of a workload begin with.
    pub fn prefix_of(&self, namespace: &str, workload: &str) -> String {
        let places = [("namespace", namespace), ("workload", workload)].into();
        // It was checked.
        filled(&self.prefix, &places).unwrap_or_else(|_| self.prefix.clone())
    }

    pub(super) fn secret(&self) -> Option<(&SecretRef, SecretKeys)> {
        let secret = self.s3.as_ref()?.credentials.as_ref()?.secret_ref.as_ref()?;
        Some((secret, SecretKeys::AccessKey))
    }
}

/// A text in which what stands in braces is replaced. The error is what can't be.
fn filled(text: &str, places: &BTreeMap<&str, &str>) -> Result<String, String> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(at);
        let end = from.find('}').filter(|_| from.starts_with('{')).ok_or_else(|| from.to_owned())?;
        let value = places.get(&from[1..end]).ok_or_else(|| from[..=end].to_owned())?;
        out.push_str(before);
        out.push_str(value);
        rest = &from[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(prefix: &str) -> Archive {
        let file = Some(ArchiveFile { path: "/var".to_owned() });
        Archive { backend: ArchiveBackend::File, file, s3: None, prefix: prefix.to_owned() }
    }

    fn problems(archive: &Archive) -> String {
        let mut problems = Problems::default();
        archive.check(&FieldPath::root("archive"), &mut problems);
        problems.to_string()
    }

    #[test]
    fn prefixes_have_the_place_of_the_pod() {
        for (prefix, expected) in [
            ("{namespace}/{workload}/", "shop/Deployment/web/"),
            ("", ""),
            ("a/b-{namespace}/", "a/b-shop/"),
            ("{workload}{workload}/", "Deployment/webDeployment/web/"),
        ] {
            assert_eq!(archive(prefix).prefix_of("shop", "Deployment/web"), expected);
            assert_eq!(problems(&archive(prefix)), "", "{prefix}");
        }
        for (prefix, found) in
            [("{pod}/", "{pod}"), ("{namespace/", "{namespace/"), ("a}/", "}/"), ("../", ".."), ("{{namespace}}/", "{")]
        {
            assert!(problems(&archive(prefix)).contains(found), "{prefix}: {}", problems(&archive(prefix)));
        }
    }
}
