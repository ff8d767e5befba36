//! What outlives a restart of the container: the last good plan, the operator's trust, the admin token. Files of the state folder,
//! readable by the sidecar alone and replaced whole.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use crds::plan::{Identity, Position, digest_bytes};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wire::signed::PublicKey;

use crate::{
    config::{PlanSource, Planned},
    supervisor::Status,
};

/// Largest file that is read back, in bytes: a plan of 8 MiB, escaped.
const MAX_FILE: u64 = 32 << 20;
const PLAN: &str = "plan.json";
const TRUST: &str = "trust.json";
const ADMIN_TOKEN: &str = "admin-token";
const SUPERVISOR: &str = "supervisor.json";
/// Length of an admin token.
const TOKEN_LEN: usize = 43;

/// The state folder.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

/// A plan as it is kept.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    /// SHA-256 of the document, lower-case hexadecimal.
    pub digest: String,
    /// How far its maker had seen.
    pub position: Position,
    /// The pod's place when it was kept.
    pub identity: Identity,
    /// `crds::plan::Plan` as JSON.
    pub document: String,
}

impl Kept {
    /// The plan, if the document is whole and can be read.
    pub fn planned(&self) -> Option<Planned> {
        if digest_bytes(self.document.as_bytes()) != self.digest {
            return None;
        }
        let plan = serde_json::from_str(&self.document).ok()?;
        let (digest, position) = (self.digest.clone(), self.position.clone());
        Some(Planned { plan: Arc::new(plan), digest, position, source: PlanSource::StateDir })
    }
}

/// Whom the operator told to trust.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trust {
    /// Certificates of the operator's CA, as PEM.
    pub ca_pem: String,
    /// Keys that may sign cold-start plans, base64.
    pub plan_keys: Vec<String>,
}

impl Trust {
    /// The keys that can be read.
    pub fn keys(&self) -> Vec<PublicKey> {
        self.plan_keys.iter().filter_map(|key| key.parse().ok()).collect()
    }
}

impl StateDir {
    /// Opens the folder, and makes it if it is missing.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(Self { path })
    }

    /// The same where other users are, who could have made it before. Root may do all things anyway.
    pub fn open_own(path: impl Into<PathBuf>) -> io::Result<Self> {
        let state = Self::open(path)?;
        // SAFETY: `geteuid` takes nothing and can't fail.
        let user = unsafe { libc::geteuid() };
        if state.is_of_another(user)? {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user"));
        }
        Ok(state)
    }

    /// Whether the folder, or the link that stands for it, belongs to somebody else than root and this user.
    fn is_of_another(&self, user: u32) -> io::Result<bool> {
        let owners = [fs::symlink_metadata(&self.path)?.uid(), fs::metadata(&self.path)?.uid()];
        Ok(owners.iter().any(|owner| ![0, user].contains(owner)))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last good plan.
    pub fn plan(&self) -> Option<Kept> {
        self.read(PLAN)
    }

    /// Keeps a plan for the next start.
    pub fn keep_plan(&self, digest: &str, position: &Position, identity: &Identity, document: &Bytes) -> io::Result<()> {
        let document = std::str::from_utf8(document).map_err(io::Error::other)?.to_owned();
        self.write(PLAN, &Kept { digest: digest.to_owned(), position: position.clone(), identity: identity.clone(), document })
    }

    /// Whom the operator told to trust.
    pub fn trust(&self) -> Option<Trust> {
        self.read(TRUST)
    }

    /// Keeps what the operator told to trust.
    pub fn keep_trust(&self, trust: &Trust) -> io::Result<()> {
        self.write(TRUST, trust)
    }

    /// A new random token for the admin interface, written to `admin-token`. Whoever can read the file may use it.
    pub fn new_admin_token(&self) -> io::Result<String> {
        let mut random = [0; 32];
        fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let token = URL_SAFE_NO_PAD.encode(random);
        self.write_bytes(ADMIN_TOKEN, token.as_bytes())?;
        Ok(token)
    }

    /// The token that is there, for a worker that is not the first of its proxy; a new one if there is none.
    pub fn same_admin_token(&self) -> io::Result<String> {
        let kept =
            read_bounded(&self.path.join(ADMIN_TOKEN), TOKEN_LEN as u64).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        kept.filter(|token| token.len() == TOKEN_LEN).map_or_else(|| self.new_admin_token(), Ok)
    }

    /// What the supervisor told last.
    pub fn supervisor(&self) -> Option<Status> {
        self.read(SUPERVISOR)
    }

    /// Keeps what the supervisor tells.
    pub fn keep_supervisor(&self, status: &Status) -> io::Result<()> {
        self.write(SUPERVISOR, status)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let path = self.path.join(name);
        let bytes = match read_bounded(&path, MAX_FILE) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "A file of the state folder can't be read.");
                return None;
            }
        };
        match serde_json::from_slice(&bytes) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "A file of the state folder is broken and was ignored.");
                None
            }
        }
    }

    fn write(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        self.write_bytes(name, &serde_json::to_vec(value)?)
    }

    /// Writes a file beside and renames it, so that a reader sees the old one or the new one whole. It is not forced to the disk,
    /// which could take long: the folder has to outlive the process, not the machine, and a torn plan is known by its digest.
    fn write_bytes(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let fresh = self.path.join(format!(".{name}.new"));
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        fs::rename(&fresh, self.path.join(name))
    }
}

/// Reads a file of at most `most` bytes.
pub(super) fn read_bounded(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {most} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, lchown, symlink};

    use super::*;

    const DOCUMENT: &str = r#"{"proxy":{"namespace":"shop","name":"web"},"settings":{},"policies":[]}"#;

    fn keep(state: &StateDir, digest: &str) {
        let identity = Identity { workload_name: "web".to_owned(), ..Identity::default() };
        let position = [("policies", "7")].into_iter().collect();
        state.keep_plan(digest, &position, &identity, &Bytes::from_static(DOCUMENT.as_bytes())).unwrap();
    }

    #[test]
    fn kept_plan_comes_back_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path().join("a/b")).unwrap();
        assert_eq!(state.plan(), None);
        keep(&state, &digest_bytes(DOCUMENT.as_bytes()));
        let kept = state.plan().unwrap();
        assert_eq!(kept.identity.workload_name, "web");
        assert_eq!(kept.planned().unwrap().plan.proxy.name, "web");
    }

    #[test]
    fn broken_or_changed_plan_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        keep(&state, "another digest");
        assert_eq!(state.plan().unwrap().planned(), None);
        fs::write(folder.path().join(PLAN), "{\"digest\": \"x").unwrap();
        assert_eq!(state.plan(), None);
    }

    #[test]
    fn files_are_for_the_sidecar_alone() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path().join("state")).unwrap();
        let token = state.new_admin_token().unwrap();
        assert_eq!(fs::read_to_string(state.path().join(ADMIN_TOKEN)).unwrap(), token);
        assert_eq!(state.same_admin_token().unwrap(), token);
        let next = state.new_admin_token().unwrap();
        assert_ne!(next, token, "a new one at every start");
        fs::write(state.path().join(ADMIN_TOKEN), "torn").unwrap();
        assert_ne!(state.same_admin_token().unwrap(), "torn");
        assert_eq!(fs::metadata(state.path().join(ADMIN_TOKEN)).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(state.path()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn folder_or_link_of_another_user_is_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let (state, link) = (StateDir::open_own(folder.path().join("state")).unwrap(), folder.path().join("link"));
        symlink(state.path(), &link).unwrap();
        let linked = StateDir::open_own(&link).unwrap();
        let us = fs::metadata(folder.path()).unwrap().uid();
        assert!(!state.is_of_another(us).unwrap() && !linked.is_of_another(us).unwrap());
        if us != 0 {
            assert!(state.is_of_another(us + 1).unwrap());
            return; // only root can give away what is its own
        }
        lchown(&link, Some(4711), None).unwrap();
        assert_eq!(StateDir::open_own(&link).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        chown(state.path(), Some(4711), None).unwrap();
        assert_eq!(StateDir::open_own(state.path()).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(!state.is_of_another(4711).unwrap());
    }
}
