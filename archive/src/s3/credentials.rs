//! Credentials that stand in files.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use aws_credential_types::{
    Credentials,
    provider::{self, ProvideCredentials, error::CredentialsError, future},
};
use tokio::{fs::File, io::AsyncReadExt as _};

/// How long what was read holds: then the files are read again.
const HOLDS: Duration = Duration::from_secs(300);
/// Bytes of a file.
const LONGEST: u64 = 4096;

/// Files with the parts of an access key; a line feed at the end does not count.
pub(super) struct Files {
    id: PathBuf,
    secret: PathBuf,
}

impl Files {
    pub(super) fn new(id: &Path, secret: &Path) -> Self {
        Self { id: id.to_owned(), secret: secret.to_owned() }
    }

    async fn read(&self) -> provider::Result {
        let (id, secret) = (read(&self.id).await?, read(&self.secret).await?);
        Ok(Credentials::new(id, secret, None, Some(SystemTime::now() + HOLDS), "files"))
    }
}

impl ProvideCredentials for Files {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.read())
    }
}

async fn read(path: &Path) -> Result<String, CredentialsError> {
    let unread = |error: io::Error| CredentialsError::provider_error(format!("{} can't be read: {error}", path.display()));
    let mut text = String::new();
    File::open(path).await.map_err(unread)?.take(LONGEST).read_to_string(&mut text).await.map_err(unread)?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(CredentialsError::provider_error(format!("{} is empty", path.display()))),
        text => Ok(text.to_owned()),
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").field("id", &self.id).finish_non_exhaustive()
    }
}
