//! containerd's content store: blobs written once under their digest, in pieces, and read back.
//!
//! A blob that was cut off stays as an ingest under its reference; opening it again continues where
//! it ended. The digest is checked by containerd when the ingest is committed.

use std::collections::HashMap;

use containerd_client::services::v1::{
    AbortRequest, Info, InfoRequest, ReadContentRequest, UpdateRequest, WriteAction,
    WriteContentRequest, WriteContentResponse,
};
use containerd_client::tonic::{Code, Status, Streaming};
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    client::{CallError, Calling, Client},
    lease::Lease,
};

/// Manifests, indexes and configs are held in memory; none larger than this is looked at. The
/// registry specification asks registries for 4 MiB (OCI distribution-spec, "Pushing manifests").
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;

/// What a call to the content store ends with when it ends badly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The bytes have another digest or size than was promised; the ingest is gone.
    #[error("content does not match {expected}")]
    Mismatch { expected: String },
    /// The call failed; the ingest stays.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// An open ingest. Dropping it closes the ingest and keeps its bytes.
pub(crate) struct Writer {
    client: Client,
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    name: String,
    offset: u64,
}

impl Writer {
    /// Opens the ingest `name`; `None` when content with the digest `expected` is there already,
    /// which the lease then holds as well.
    pub(crate) async fn open(
        client: &Client,
        lease: &Lease,
        name: &str,
        expected: Option<(&str, u64)>,
    ) -> Result<Option<Self>, CallError> {
        let what = || format!("write content {name}");
        let (requests, receiver) = mpsc::channel(1);
        let (digest, size) = expected.unwrap_or_default();
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: name.to_owned(),
            total: size.try_into().unwrap_or(i64::MAX),
            expected: digest.to_owned(),
            ..Default::default()
        };
        requests
            .send(first)
            .await
            .expect("the receiver is on this stack");
        let request = lease.request(ReceiverStream::new(receiver));
        let opened = async {
            let mut answers = client.content().write(request).await?.into_inner();
            let answer = next(&mut answers).await?;
            Ok::<_, Status>((answers, answer.offset))
        };
        match opened.await {
            Ok((answers, offset)) => Ok(Some(Self {
                client: client.clone(),
                requests,
                answers,
                name: name.to_owned(),
                offset: u64::try_from(offset).unwrap_or(0),
            })),
            Err(status) if status.code() == Code::AlreadyExists => Ok(None),
            Err(status) => Err(status).calling(what),
        }
    }

    /// How many bytes the ingest holds.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends `data`.
    pub(crate) async fn write(&mut self, data: Vec<u8>) -> Result<(), CallError> {
        let length = data.len() as u64;
        let message = WriteContentRequest {
            action: WriteAction::Write.into(),
            r#ref: self.name.clone(),
            offset: signed(self.offset),
            data,
            ..Default::default()
        };
        let answer = self
            .ask(message)
            .await
            .calling(|| format!("write content {}", self.name))?;
        self.offset += length;
        debug_assert_eq!(answer.offset, signed(self.offset));
        Ok(())
    }

    /// Appends what the ingest lacks of `data`, which begins at the blob's byte `begin`. It may hold some from the start:
    /// of an attempt that was cut off, or all, where another namespace has the blob.
    pub(crate) async fn write_from(
        &mut self,
        begin: u64,
        mut data: Vec<u8>,
    ) -> Result<(), CallError> {
        let held = self.offset.saturating_sub(begin);
        let held = usize::try_from(held).unwrap_or(usize::MAX).min(data.len());
        match data.split_off(held) {
            rest if rest.is_empty() => Ok(()),
            rest => self.write(rest).await,
        }
    }

    /// Closes the ingest and puts its bytes into the store; answers their digest.
    pub(crate) async fn commit(
        mut self,
        expected: Option<&str>,
        labels: HashMap<String, String>,
    ) -> Result<String, WriteError> {
        let message = WriteContentRequest {
            action: WriteAction::Commit.into(),
            r#ref: self.name.clone(),
            offset: signed(self.offset),
            total: signed(self.offset),
            expected: expected.unwrap_or_default().to_owned(),
            labels,
            ..Default::default()
        };
        match self.ask(message).await {
            Ok(answer) => Ok(answer.digest),
            Err(status) if status.code() == Code::AlreadyExists => {
                let digest = expected.map(str::to_owned);
                Ok(digest
                    .or_else(|| digest_in(status.message()))
                    .unwrap_or_default())
            }
            Err(status) if status.code() == Code::FailedPrecondition => {
                let expected = expected.unwrap_or_default().to_owned();
                self.abort().await;
                Err(WriteError::Mismatch { expected })
            }
            Err(status) => Err(status)
                .calling(|| format!("commit content {}", self.name))
                .map_err(Into::into),
        }
    }

    /// Throws the ingest away.
    pub(crate) async fn abort(self) {
        let Self {
            client,
            requests,
            mut answers,
            name,
            ..
        } = self;
        // The write call has to end first: it holds the ingest's lock.
        drop(requests);
        while let Ok(Some(_)) = answers.message().await {}
        let request = client.request(AbortRequest {
            r#ref: name.clone(),
        });
        match client.content().abort(request).await {
            Err(status) if status.code() != Code::NotFound => {
                tracing::warn!(ingest = name, %status, "ingest not aborted");
            }
            _ => {}
        }
    }

    async fn ask(&mut self, message: WriteContentRequest) -> Result<WriteContentResponse, Status> {
        // When the call is over the send fails, and the stream tells why.
        let _ = self.requests.send(message).await;
        next(&mut self.answers).await
    }
}

/// Writes a whole small blob; content that is there already is left as it is.
pub(crate) async fn write_all(
    client: &Client,
    lease: &Lease,
    blob: (&str, &[u8]),
    labels: HashMap<String, String>,
) -> Result<(), WriteError> {
    let (digest, bytes) = blob;
    let name = format!("opr-{digest}");
    let expected = Some((digest, bytes.len() as u64));
    let Some(mut writer) = Writer::open(client, lease, &name, expected).await? else {
        return Ok(set_labels(client, digest, labels).await?);
    };
    writer.write_from(0, bytes.to_vec()).await?;
    writer.commit(Some(digest), labels).await.map(drop)
}

/// The whole of a small blob; `None` where the store has no such content.
pub(crate) async fn read(client: &Client, digest: &str) -> Result<Option<Vec<u8>>, CallError> {
    let what = || format!("read content {digest}");
    let Some(info) = info(client, digest).await? else {
        return Ok(None);
    };
    if !u64::try_from(info.size).is_ok_and(|size| size <= MAX_DOCUMENT) {
        let status = Status::out_of_range(format!("{} bytes are no manifest or config", info.size));
        return Err(status).calling(what);
    }
    let request = ReadContentRequest {
        digest: digest.to_owned(),
        ..Default::default()
    };
    let read = async {
        let mut answers = client
            .content()
            .read(client.request(request))
            .await?
            .into_inner();
        let mut bytes = Vec::new();
        while let Some(answer) = answers.message().await? {
            bytes.extend_from_slice(&answer.data);
        }
        Ok(bytes)
    };
    read.await.map(Some).calling(what)
}

/// What the store knows of a blob; `None` where it has no such content.
pub(crate) async fn info(client: &Client, digest: &str) -> Result<Option<Info>, CallError> {
    let request = client.request(InfoRequest {
        digest: digest.to_owned(),
    });
    match client.content().info(request).await {
        Ok(answer) => Ok(answer.into_inner().info),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status).calling(|| format!("look up content {digest}")),
    }
}

/// Adds labels to a blob, which keeps those it has.
pub(crate) async fn set_labels(
    client: &Client,
    digest: &str,
    labels: HashMap<String, String>,
) -> Result<(), CallError> {
    if labels.is_empty() {
        return Ok(());
    }
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let info = Info {
        digest: digest.to_owned(),
        labels,
        ..Default::default()
    };
    let request = UpdateRequest {
        info: Some(info),
        update_mask: Some(FieldMask { paths }),
    };
    let answer = client.content().update(client.request(request)).await;
    answer
        .map(drop)
        .calling(|| format!("label content {digest}"))
}

async fn next(
    answers: &mut Streaming<WriteContentResponse>,
) -> Result<WriteContentResponse, Status> {
    let answer = answers.message().await?;
    answer.ok_or_else(|| Status::unavailable("containerd ended the write"))
}

fn signed(n: u64) -> i64 {
    n.try_into().unwrap_or(i64::MAX)
}

/// The first sha256 digest in a text.
fn digest_in(text: &str) -> Option<String> {
    let start = text.find("sha256:")?;
    text.get(start..start + 71).map(str::to_owned)
}
