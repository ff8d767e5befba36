//! Why an administrator gets no answer.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};

use crate::{PurgeError, show::ShowError};

/// Why there is no answer, by words and by a status of HTTP.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refused {
    /// 400 if the question is wrong, 404 if there is nothing to show, 503 if it may be answered later.
    pub status: StatusCode,
    /// In words.
    pub why: String,
}

impl Refused {
    /// The question is wrong.
    pub fn wrong(why: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, why: why.into() }
    }

    /// It may be answered later.
    pub(crate) fn later(why: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, why: why.into() }
    }
}

impl From<PurgeError> for Refused {
    fn from(error: PurgeError) -> Self {
        let why = error.to_string();
        match error {
            PurgeError::Wrong(_) => Self::wrong(why),
            PurgeError::Unreachable(_) | PurgeError::Elsewhere | PurgeError::Busy => Self::later(why),
        }
    }
}

impl From<ShowError> for Refused {
    fn from(error: ShowError) -> Self {
        let why = error.to_string();
        match error {
            ShowError::Wrong(_) => Self::wrong(why),
            ShowError::Nothing(_) => Self { status: StatusCode::NOT_FOUND, why },
            ShowError::Closed | ShowError::Busy(_) => Self::later(why),
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, self.why + "\n").into_response()
    }
}
