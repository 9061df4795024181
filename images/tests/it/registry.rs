//! Debian's docker-registry on a loopback port, as long as a test lasts.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::json;

use crate::image::{Blob, OCI_INDEX, TestImage, architecture};

/// `sesame`, as htpasswd's bcrypt writes it.
const USER: &str = "ann:$2y$05$abcdefghijklmnopqrstuuKcS.CYWVYVaLiiCKrrc0A5s3mGesJ9O\n";

/// A registry with storage of its own.
pub(crate) struct Registry {
    dir: tempfile::TempDir,
    address: SocketAddr,
    process: Child,
    has_password: bool,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        Self::start_with(false).await
    }

    /// With a password: `ann`, `sesame`.
    pub(crate) async fn start_with(has_password: bool) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("opr-registry-")
            .tempdir()
            .unwrap();
        // The port is free again when the listener is gone; nobody else asks for it meanwhile.
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let path = dir.path().display();
        let auth = match has_password {
            true => format!("auth: {{htpasswd: {{realm: test, path: {path}/htpasswd}}}}\n"),
            false => String::new(),
        };
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {path}/data}}}}\n\
             http: {{addr: '{address}'}}\n{auth}"
        );
        fs::write(dir.path().join("htpasswd"), USER).unwrap();
        fs::write(dir.path().join("config.yml"), config).unwrap();
        let process = spawn(&dir);
        let registry = Self {
            dir,
            address,
            process,
            has_password,
        };
        registry.wait().await;
        registry
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn stop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) fn start_again(&mut self) {
        self.process = spawn(&self.dir);
    }

    /// Pushes the image as `repository:tag`.
    pub(crate) async fn push(&self, image: &TestImage, repository: &str, tag: &str) {
        for blob in image.layers.iter().chain([&image.config]) {
            self.push_blob(blob, repository).await;
        }
        self.push_manifest(&image.manifest, repository, tag).await;
    }

    /// Pushes an index with the image for this machine and one for another.
    pub(crate) async fn push_index(&self, image: &TestImage, repository: &str, tag: &str) -> Blob {
        self.push(image, repository, "one").await;
        let other = TestImage::new("another machine's", 0);
        self.push(&other, repository, "other").await;
        let entry = |blob: &Blob, architecture: &str| {
            let mut entry = blob.descriptor();
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            entry
        };
        let manifests = [
            entry(&other.manifest, "vax"),
            entry(&image.manifest, architecture()),
        ];
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        let index = Blob::new(index.to_string().into_bytes(), OCI_INDEX);
        self.push_manifest(&index, repository, tag).await;
        index
    }

    pub(crate) async fn push_manifest(&self, manifest: &Blob, repository: &str, tag: &str) {
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.address);
        let request = self.request(reqwest::Method::PUT, &url);
        let request = request.header("content-type", manifest.media_type);
        let answer = request.body(manifest.bytes.clone()).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
    }

    async fn push_blob(&self, blob: &Blob, repository: &str) {
        let url = format!("http://{}/v2/{repository}/blobs/uploads/", self.address);
        let answer = self
            .request(reqwest::Method::POST, &url)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 202);
        let location = answer.headers()["location"].to_str().unwrap();
        let url = format!("{location}&digest={}", blob.digest);
        let request = self
            .request(reqwest::Method::PUT, &url)
            .body(blob.bytes.clone());
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
    }

    fn request(&self, method: reqwest::Method, url: &str) -> reqwest::RequestBuilder {
        let request = reqwest::Client::new().request(method, url);
        if self.has_password {
            request.basic_auth("ann", Some("sesame"))
        } else {
            request
        }
    }

    pub(crate) async fn wait(&self) {
        for _ in 0..500 {
            if tokio::net::TcpStream::connect(self.address).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the registry does not answer");
    }
}

fn spawn(dir: &tempfile::TempDir) -> Child {
    Command::new("docker-registry")
        .arg("serve")
        .arg(dir.path().join("config.yml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
