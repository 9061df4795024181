//! A lease keeps what an unfinished pull or import has written from containerd's garbage collector.

use std::{
    collections::HashMap, sync::atomic::AtomicU64, sync::atomic::Ordering, time::SystemTime,
};

use containerd_client::services::v1::{AddResourceRequest, CreateRequest, DeleteRequest, Resource};
use containerd_client::tonic::{
    Code, Request,
    metadata::{Ascii, MetadataValue},
};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use crate::client::{CallError, Calling, Client};

/// A lease whose owner died holds its content for this long and no longer.
const LIFETIME: Duration = Duration::hours(24);

/// One lease of containerd's, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    client: Client,
    id: String,
    header: MetadataValue<Ascii>,
    is_released: bool,
}

impl Lease {
    pub(crate) async fn create(client: &Client, purpose: &str) -> Result<Self, CallError> {
        let id = format!("opr-{purpose}-{}", unique());
        let header = id
            .parse()
            .expect("the id is made of ASCII letters, digits and dashes");
        let labels = HashMap::from([(
            "containerd.io/gc.expire".to_owned(),
            timestamp(OffsetDateTime::now_utc() + LIFETIME),
        )]);
        let request = client.request(CreateRequest {
            id: id.clone(),
            labels,
        });
        client
            .leases()
            .create(request)
            .await
            .calling(|| format!("create lease {id}"))?;
        Ok(Self {
            client: client.clone(),
            id,
            header,
            is_released: false,
        })
    }

    /// A request whose new content and snapshots belong to the lease.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.client.request(message);
        request
            .metadata_mut()
            .insert("containerd-lease", self.header.clone());
        request
    }

    /// Gives the lease back: what it held is now held by an image, or garbage.
    pub(crate) async fn release(mut self) {
        self.is_released = true;
        release(&self.client, &self.id).await;
    }

    /// Holds a snapshot that was there before.
    pub(crate) async fn hold_snapshot(&self, key: &str) -> Result<(), CallError> {
        let resource = Resource {
            id: key.to_owned(),
            r#type: format!("snapshots/{}", self.client.snapshotter()),
        };
        let request = AddResourceRequest {
            id: self.id.clone(),
            resource: Some(resource),
        };
        match self
            .client
            .leases()
            .add_resource(self.client.request(request))
            .await
        {
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            answer => answer
                .map(|_| ())
                .calling(|| format!("hold snapshot {key}")),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.is_released {
            return;
        }
        let (client, id) = (self.client.clone(), std::mem::take(&mut self.id));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { release(&client, &id).await });
        }
    }
}

async fn release(client: &Client, id: &str) {
    let request = client.request(DeleteRequest {
        id: id.to_owned(),
        sync: false,
    });
    if let Err(status) = client.leases().delete(request).await {
        tracing::warn!(lease = id, %status, "lease not given back; it will expire");
    }
}

/// The time as containerd's labels carry it.
pub(crate) fn timestamp(time: OffsetDateTime) -> String {
    time.format(&Rfc3339)
        .expect("a time of this era has an RFC 3339 form")
}

/// A text no other call, thread or process of this machine returns: process, time and a count.
pub(crate) fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{}-{}-{count}", std::process::id(), now.as_nanos())
}
