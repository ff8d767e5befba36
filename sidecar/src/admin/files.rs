//! Files of answers, from the cache and for it.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;

use super::Admin;
use crate::{ExportRequest, Imported, SpoolError, ask::Refused, show::ImportError};

/// `?policy=shop/catalogue&tag=news&prefix=http://shop/products/`: see [`ExportRequest`]. The answer is a file, which ends without its end
/// if the proxy does.
pub(super) async fn export(State(admin): State<Admin>, Query(request): Query<ExportRequest>) -> Result<Response, Refused> {
    let pieces = admin.cache.export(&request)?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(pieces)).into_response())
}

/// What is asked of `POST /cache/import`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct ImportRequest {
    /// Nothing is stored.
    dry_run: bool,
}

/// `?dryRun=true` tells what would become of the file that is sent.
pub(super) async fn import(
    State(admin): State<Admin>,
    Query(request): Query<ImportRequest>,
    body: Body,
) -> Result<Json<Imported>, Refused> {
    let config = Arc::clone(&admin.shared.load());
    let imported = admin.cache.import(config, body.into_data_stream(), request.dry_run).await;
    imported.map(Json).map_err(|error| match error {
        ImportError::Show(error) => error.into(),
        ImportError::Spool(error) => {
            let status = match error {
                SpoolError::Damaged(_) | SpoolError::BrokeOff(_) => StatusCode::BAD_REQUEST,
                SpoolError::TooLong(_) => StatusCode::PAYLOAD_TOO_LARGE,
                SpoolError::Io(_) => StatusCode::INSUFFICIENT_STORAGE,
            };
            Refused { status, why: error.to_string() }
        }
    })
}
