//! What a bucket's errors mean.

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};

use crate::{Error, Kind};

/// What was being done, and where.
#[derive(Clone, Debug)]
pub(super) struct Doing {
    pub(super) place: String,
    pub(super) what: &'static str,
}

impl Doing {
    /// Why it failed.
    pub(super) fn failed<E>(&self, error: SdkError<E, HttpResponse>) -> Error
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let (status, code) = (status(&error), error.code().unwrap_or_default().to_owned());
        let answer = match (status, &*code) {
            (Some(status), "") => format!("{}: it was answered with {status}", self.what),
            (Some(status), code) => format!("{}: it was answered with {status} {code}", self.what),
            (None, _) => self.what.to_owned(),
        };
        let (kind, hint) = meaning(status, &code, &error);
        Error::new(kind, &self.place, answer).hint(hint).because(error)
    }

    /// Why its body did not come whole.
    pub(super) fn broke_off(&self, error: impl StdError + Send + Sync + 'static) -> Error {
        Error::new(Kind::Unavailable, &self.place, format!("{}: it broke off", self.what)).because(error)
    }
}

/// The status of the answer, if there was one.
pub(super) fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// Whether nobody could be found who asks.
fn is_of_credentials(error: &(dyn StdError + 'static)) -> bool {
    error.is::<CredentialsError>() || error.source().is_some_and(is_of_credentials)
}

fn meaning<E>(status: Option<u16>, code: &str, error: &SdkError<E, HttpResponse>) -> (Kind, &'static str)
where
    E: StdError + Send + Sync + 'static,
{
    match (status, code) {
        (_, "NoSuchBucket") => (Kind::NotFound, "make the bucket, or name another one"),
        (_, "NoSuchKey") | (Some(404), _) => (Kind::NotFound, "there is no such object"),
        (Some(412), _) | (Some(409), "ConditionalRequestConflict") => (Kind::Exists, "there is one already"),
        (_, "SignatureDoesNotMatch" | "InvalidAccessKeyId") => (Kind::Denied, "are these the bucket's credentials?"),
        (_, "AuthorizationHeaderMalformed" | "PermanentRedirect") | (Some(301 | 307), _) => {
            (Kind::Wrong, "the bucket is in another region: name that one")
        }
        (_, "RequestTimeTooSkewed") => (Kind::Denied, "set the clock of this machine"),
        (Some(401 | 403), _) => (Kind::Denied, "the credentials need GetObject, PutObject, DeleteObject and ListBucket there"),
        (Some(400), _) => (Kind::Wrong, "does the endpoint speak S3?"),
        (Some(_), _) => (Kind::Unavailable, "try again later"),
        (None, _) => match error {
            SdkError::ConstructionFailure(_) => (Kind::Wrong, "is there a region, and are there credentials?"),
            _ if is_of_credentials(error) => {
                (Kind::Denied, "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a Secret")
            }
            _ => (Kind::Unavailable, "does the endpoint answer?"),
        },
    }
}
