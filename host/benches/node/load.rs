//! Load by `wrk`, from outside or from inside an instance's network namespace, and nginx as a peer in there.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// A running instance, as the kernel shows it.
pub(crate) struct Instance {
    pid: u32,
    secret: String,
}

impl Instance {
    /// The process that has `mark` in its environment.
    pub(crate) fn find(mark: &str) -> Result<Self> {
        for entry in fs::read_dir("/proc")?.flatten() {
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let variables: Vec<_> = environment.split(|byte| *byte == 0).collect();
            if variables.contains(&mark.as_bytes()) {
                let secret = variables
                    .iter()
                    .find_map(|v| v.strip_prefix(b"OPEN_RUNTIMES_SECRET="));
                return Ok(Self {
                    pid: entry.file_name().to_string_lossy().parse()?,
                    secret: String::from_utf8_lossy(secret.context("no secret")?).into_owned(),
                });
            }
        }
        anyhow::bail!("no process has {mark}")
    }

    /// What the gateway sends with each execution.
    pub(crate) fn headers(&self) -> Vec<String> {
        vec![
            format!("x-open-runtimes-secret: {}", self.secret),
            "x-open-runtimes-timeout: 15".into(),
            "x-open-runtimes-logging: enabled".into(),
        ]
    }

    fn enter(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.pid))
            .arg(program);
        command
    }
}

/// What is loaded.
pub(crate) struct Target<'a> {
    /// From inside whose network; none is the host's.
    pub(crate) instance: Option<&'a Instance>,
    pub(crate) url: String,
    pub(crate) headers: Vec<String>,
}

/// What `wrk` measured.
pub(crate) struct Figures {
    pub(crate) p50_ms: f64,
    pub(crate) per_second: f64,
    pub(crate) n: usize,
}

impl Target<'_> {
    /// Sends as many requests as it answers, each connection one at a time.
    pub(crate) fn load(&self, connections: usize, seconds: usize) -> Result<Figures> {
        let mut command = match self.instance {
            Some(instance) => instance.enter("wrk"),
            None => Command::new("wrk"),
        };
        for header in &self.headers {
            command.arg("--header").arg(header);
        }
        let url = &self.url;
        let output = command
            .args(["--latency", "--threads", "1"])
            .args(["--connections", &connections.to_string()])
            .args(["--duration", &format!("{seconds}s"), url])
            .output()
            .context("wrk is not here: apt-get install wrk")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success() && !text.contains("Non-2xx"),
            "{url}: {text}"
        );
        let line = |start: &str| {
            text.lines()
                .map(str::trim)
                .find(|line| line.starts_with(start))
                .map(str::to_owned)
        };
        let p50 = line("50%").context("wrk prints a median")?;
        let rate = line("Requests/sec:").context("wrk prints a rate")?;
        let n = text
            .lines()
            .find(|line| line.contains("requests in"))
            .context("wrk prints a count")?;
        Ok(Figures {
            p50_ms: milliseconds(p50.trim_start_matches("50%").trim())?,
            per_second: rate.trim_start_matches("Requests/sec:").trim().parse()?,
            n: n.split_whitespace().next().unwrap_or_default().parse()?,
        })
    }
}

fn milliseconds(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 1e-3), ("ms", 1.0), ("s", 1e3)] {
        if let Some(number) = text.strip_suffix(unit)
            && let Ok(value) = number.parse::<f64>()
        {
            return Ok(value * factor);
        }
    }
    anyhow::bail!("{text:?} is no time")
}

/// nginx as reverse proxy to an instance, in its network namespace.
pub(crate) struct Nginx {
    process: Child,
}

impl Nginx {
    /// Starts it with its files below `folder`.
    pub(crate) fn start(instance: &Instance, folder: &Path) -> Result<Self> {
        let folder = folder.join("nginx");
        fs::create_dir_all(&folder)?;
        let headers: Vec<_> = instance
            .headers()
            .iter()
            .filter_map(|header| header.split_once(": "))
            .map(|(name, value)| format!("proxy_set_header {name} '{value}';"))
            .collect();
        let text = format!(
            "daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log;
            events {{ worker_connections 1024; }}
            http {{
                access_log off; client_body_temp_path {dir}; proxy_temp_path {dir};
                fastcgi_temp_path {dir}; uwsgi_temp_path {dir}; scgi_temp_path {dir};
                keepalive_requests 1000000;
                upstream instance {{ server 127.0.0.1:3000; keepalive 64; keepalive_requests 1000000; }}
                server {{
                    listen 127.0.0.1:8081;
                    location / {{
                        proxy_pass http://instance; proxy_http_version 1.1;
                        proxy_set_header connection ''; {headers}
                    }}
                }}
            }}",
            dir = folder.display(),
            headers = headers.join(" "),
        );
        fs::write(folder.join("nginx.conf"), text)?;
        let process = instance
            .enter("nginx")
            .arg("-c")
            .arg(folder.join("nginx.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("nginx is not here: apt-get install nginx-light")?;
        std::thread::sleep(std::time::Duration::from_millis(500));
        Ok(Self { process })
    }

    /// Where it listens, inside the namespace.
    #[allow(clippy::unused_self, reason = "a URL of a running server")]
    pub(crate) fn url(&self) -> String {
        "http://127.0.0.1:8081/".into()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
