//! Where snapshots are, and what is to be in them.

use std::time::Duration;

use archive::{Key, Store, file::Folder, s3};
use crds::proxy::{Archive, ArchiveBackend, ArchiveS3, PathStyle};

use crate::{cache::Scope, config::Config, tls::Secrets};

/// The snapshot of a workload, below the prefix of the archive.
const NAME: &str = "cache.fxc";

/// As the configuration says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Settings {
    pub(super) key: Key,
    pub(super) interval: Duration,
    pub(super) max_bytes: u64,
    pub(super) load_timeout: Duration,
    place: Place,
}

/// Which store it is.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Place {
    Folder(String),
    Bucket(s3::Settings),
}

impl Settings {
    /// None if there are to be no snapshots, or as long as there is no plan.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn of(config: &Config, secrets: &Secrets) -> Result<Option<Self>, String> {
        let spec = config.settings();
        let (Some(planned), Some(archive), Some(persistence)) = (&config.planned, &spec.archive, spec.cache.persistence) else {
            return Ok(None);
        };
        let scope = Scope::of(&planned.plan.proxy, &config.identity)?;
        let (namespace, workload) = scope.parts();
        let key = Key::new(format!("{}{NAME}", archive.prefix_of(namespace, workload))).map_err(|error| error.to_string())?;
        let place = place(archive, secrets)?;
        let (interval, load_timeout) = (persistence.interval.0, persistence.load_timeout.0);
        Ok(Some(Self { key, interval, max_bytes: persistence.max_bytes.0, load_timeout, place }))
    }

    /// Opens the store.
    pub(super) async fn open(&self) -> Box<dyn Store> {
        match &self.place {
            Place::Folder(path) => Box::new(Folder::new(path)),
            Place::Bucket(settings) => Box::new(s3::Bucket::open(settings).await),
        }
    }
}

fn place(archive: &Archive, secrets: &Secrets) -> Result<Place, String> {
    match (archive.backend, &archive.file, &archive.s3) {
        (ArchiveBackend::File, Some(file), _) => Ok(Place::Folder(file.path.clone())),
        (ArchiveBackend::S3, _, Some(s3)) => bucket(s3, secrets).map(Place::Bucket),
        // Admission refuses it.
        (ArchiveBackend::File, ..) => Err("archive.file is missing".to_owned()),
        (ArchiveBackend::S3, ..) => Err("archive.s3 is missing".to_owned()),
    }
}

fn bucket(settings: &ArchiveS3, secrets: &Secrets) -> Result<s3::Settings, String> {
    let ArchiveS3 { bucket, region, endpoint, path_style, credentials } = settings;
    let credentials = match credentials {
        None => s3::Credentials::Chain,
        Some(credentials) => {
            let file = |key: &str, standalone: &Option<String>| match (&credentials.secret_ref, standalone) {
                (Some(secret), _) => secrets.file(&secret.name, key).map_err(|error| error.to_string()),
                (None, Some(path)) => Ok(path.into()),
                (None, None) => Err("archive.s3.credentials names neither a Secret nor files".to_owned()),
            };
            s3::Credentials::Files {
                access_key_id: file("accessKeyID", &credentials.access_key_id_file)?,
                secret_access_key: file("secretAccessKey", &credentials.secret_access_key_file)?,
            }
        }
    };
    let path_style = path_style.map(|style| style == PathStyle::Enabled);
    Ok(s3::Settings { bucket: bucket.clone(), region: region.clone(), endpoint: endpoint.clone(), path_style, credentials })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crds::plan::{Identity, ObjectRef, Plan, Position};
    use serde_json::{Value, json};

    use super::*;
    use crate::config::{PlanSource, Planned};

    fn settings(spec: Value, secrets: &Secrets) -> Result<Option<Settings>, String> {
        let plan =
            Plan { proxy: ObjectRef::new("shop", "web"), settings: serde_json::from_value(spec).unwrap(), ..Plan::default() };
        let (digest, position) = ("d".to_owned(), Position::default());
        let planned = Planned { plan: Arc::new(plan), digest, position, source: PlanSource::File };
        let identity =
            Identity { workload_kind: "Deployment".to_owned(), workload_name: "web".to_owned(), ..Identity::default() };
        Settings::of(&Config::build(planned, identity).unwrap(), secrets)
    }

    #[test]
    fn snapshots_are_where_the_archive_is() {
        let mounted = Secrets(Some("/etc/secrets".into()));
        let folder = json!({"backend": "File", "file": {"path": "/var/archive"}});
        let of =
            |archive: &Value| settings(json!({"archive": archive, "cache": {"persistence": {}}}), &mounted).unwrap().unwrap();
        let found = of(&folder);
        assert_eq!(
            (found.key.as_str(), &found.place),
            ("shop/Deployment/web/cache.fxc", &Place::Folder("/var/archive".to_owned()))
        );
        assert_eq!((found.interval.as_secs(), found.max_bytes, found.load_timeout.as_secs()), (600, 32 << 20, 60));
        let bucket = of(&json!({"backend": "S3", "prefix": "a/", "s3": {
            "bucket": "captures", "endpoint": "http://minio:9000", "pathStyle": "Disabled", "credentials": {"secretRef": {"name": "s3"}},
        }}));
        let credentials = s3::Credentials::Files {
            access_key_id: "/etc/secrets/s3/accessKeyID".into(),
            secret_access_key: "/etc/secrets/s3/secretAccessKey".into(),
        };
        let (name, endpoint) = ("captures".to_owned(), Some("http://minio:9000".to_owned()));
        let expected = s3::Settings { bucket: name, region: None, endpoint, path_style: Some(false), credentials };
        assert_eq!((bucket.key.as_str(), bucket.place), ("a/cache.fxc", Place::Bucket(expected)));
    }

    #[test]
    fn without_archive_secrets_or_need_there_are_none() {
        let alone = Secrets(None);
        assert_eq!(settings(json!({}), &alone), Ok(None));
        assert_eq!(settings(json!({"archive": {"backend": "File", "file": {"path": "/var"}}}), &alone), Ok(None));
        let secret = json!({"backend": "S3", "s3": {"bucket": "captures", "credentials": {"secretRef": {"name": "s3"}}}});
        let wrong = settings(json!({"archive": secret, "cache": {"persistence": {}}}), &alone).unwrap_err();
        assert!(wrong.contains("s3"), "{wrong}");
        let folder = json!({"backend": "S3", "file": {"path": "/var"}});
        assert!(settings(json!({"archive": folder, "cache": {"persistence": {}}}), &alone).unwrap_err().contains("archive.s3"));
        assert_eq!(Settings::of(&Config::waiting(Default::default()), &alone), Ok(None), "without a plan");
    }
}
