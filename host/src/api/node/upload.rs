//! A deployment on its way in: a small JSON part and a large archive, which goes straight to a file.

use std::io;

use futures_util::StreamExt;
use http::{Request, header};
use http_body_util::BodyExt;
use multer::{Constraints, Field, Multipart, SizeLimit};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;

use super::{ApiError, wire::DeployRequest};
use crate::executor::execution::Body;

/// Bytes of a source archive, at most: what a build takes.
const MAX_SOURCE: u64 = 512 << 20;
/// Bytes of the part `function`, at most.
const MAX_FUNCTION: usize = 1 << 20;

/// What a client has sent.
pub(super) struct Upload {
    pub(super) request: DeployRequest,
    /// Removed when dropped.
    pub(super) source: NamedTempFile,
}

pub(super) async fn receive(request: Request<Body>) -> Result<Upload, ApiError> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    let kind = kind.and_then(|value| value.to_str().ok());
    let boundary = multer::parse_boundary(kind.unwrap_or_default());
    let boundary = boundary.map_err(|_| ApiError::bad_request("send multipart/form-data"))?;
    let limits = SizeLimit::new()
        .for_field("function", MAX_FUNCTION as u64)
        .for_field("source", MAX_SOURCE);
    let constraints = Constraints::new()
        .allowed_fields(vec!["function", "source"])
        .size_limit(limits);
    let body = request.into_body().into_data_stream();
    let mut parts = Multipart::with_constraints(body.boxed(), boundary, constraints);
    let (mut function, mut source) = (None, None);
    while let Some(part) = parts.next_field().await.map_err(invalid)? {
        match part.name() {
            Some("function") => {
                let text = part.bytes().await.map_err(invalid)?;
                let parsed = serde_json::from_slice::<DeployRequest>(&text);
                let wrong =
                    |error| ApiError::bad_request(format!("part \"function\" is wrong: {error}"));
                function = Some(parsed.map_err(wrong)?);
            }
            _ => source = Some(store(part).await?),
        }
    }
    match (function, source) {
        (Some(request), Some(source)) => Ok(Upload { request, source }),
        (None, _) => Err(ApiError::bad_request("part \"function\" is missing")),
        (_, None) => Err(ApiError::bad_request("part \"source\" is missing")),
    }
}

/// A JSON object, whole.
pub(super) async fn document(
    request: Request<Body>,
) -> Result<serde_json::Map<String, serde_json::Value>, ApiError> {
    let mut body = request.into_body();
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::bad_request(error.to_string()))?;
        text.extend(frame.into_data().unwrap_or_default());
        if text.len() > MAX_FUNCTION {
            return Err(ApiError::bad_request("the document is too long"));
        }
    }
    serde_json::from_slice(&text).map_err(|error| ApiError::bad_request(error.to_string()))
}

async fn store(mut part: Field<'_>) -> Result<NamedTempFile, ApiError> {
    let disk = |error: io::Error| ApiError::disk(&error);
    let file = NamedTempFile::new().map_err(disk)?;
    let mut writer = tokio::fs::File::from_std(file.reopen().map_err(disk)?);
    while let Some(chunk) = part.chunk().await.map_err(invalid)? {
        writer.write_all(&chunk).await.map_err(disk)?;
    }
    writer.flush().await.map_err(disk)?;
    Ok(file)
}

fn invalid(error: multer::Error) -> ApiError {
    ApiError::bad_request(format!("the upload cannot be read: {error}"))
}
