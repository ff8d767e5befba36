//! AdmissionReviews: read, and refused.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kube::core::{
    DynamicObject, Status,
    admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, META_API_VERSION_V1},
    response::StatusSummary,
};
use serde_json::Value;

/// The request in a review.
pub(super) fn read(body: &[u8]) -> Result<AdmissionRequest<DynamicObject>, String> {
    let review: AdmissionReview<DynamicObject> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if review.types.api_version != META_API_VERSION_V1 {
        return Err(format!("its apiVersion is {:?}", review.types.api_version));
    }
    review.try_into().map_err(|_| "it has no request".to_owned())
}

/// The review with the response, as the API server reads it: the patch is base64, which the types leave to us.
pub(super) fn write(mut response: AdmissionResponse) -> Value {
    let patch = response.patch.take();
    let mut review = serde_json::to_value(response.into_review()).expect("a response is strings and numbers");
    if let Some(patch) = patch {
        review["response"]["patch"] = STANDARD.encode(patch).into();
    }
    review
}

/// A refusal in words for whoever made the object.
pub(super) fn refused(mut response: AdmissionResponse, code: u16, reason: &str, message: String) -> AdmissionResponse {
    response.allowed = false;
    response.result =
        Status { status: Some(StatusSummary::Failure), code, message, reason: reason.to_owned(), ..Status::default() };
    response
}
