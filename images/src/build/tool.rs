//! The words in which each builder is asked for the same things.

use std::path::{Path, PathBuf};

use super::BuildContext;

/// A program that builds images from Dockerfiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// Needs no daemon.
    Buildah,
    /// Needs no daemon.
    Podman,
    /// Needs dockerd.
    Docker,
    /// Needs containerd and buildkitd.
    Nerdctl,
}

/// What a build gets of this machine's own settings.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// A bundle of certificate authorities.
    pub(super) certificates: Option<PathBuf>,
    /// A file for `/etc/apt/apt.conf.d`.
    pub(super) apt: Option<PathBuf>,
    /// Proxy variables.
    pub(super) proxies: Vec<(String, String)>,
}

impl Tool {
    /// In order of preference.
    pub const ALL: [Self; 4] = [Self::Buildah, Self::Podman, Self::Docker, Self::Nerdctl];

    /// The program's name.
    pub fn program(self) -> &'static str {
        match self {
            Self::Buildah => "buildah",
            Self::Podman => "podman",
            Self::Docker => "docker",
            Self::Nerdctl => "nerdctl",
        }
    }

    /// Whether it works on storage of its own, without a daemon.
    fn is_daemonless(self) -> bool {
        match self {
            Self::Buildah | Self::Podman => true,
            Self::Docker | Self::Nerdctl => false,
        }
    }

    /// Options that go before all others and say where the storage is.
    pub(super) fn storage(self, root: Option<&Path>) -> Vec<String> {
        match root {
            Some(root) if self.is_daemonless() => {
                let run = root.join("run");
                words(["--root", text(root), "--runroot", text(&run)])
            }
            _ => vec![],
        }
    }

    /// Builds an image.
    ///
    /// In chroot isolation no runtime is needed, and the step's network is the machine's.
    pub(super) fn build(
        self,
        context: &BuildContext,
        (label, value): (&str, &str),
        around: &Surroundings,
    ) -> Vec<String> {
        let tag = context.tag.to_string();
        let mut arguments = words(["build", "--file", text(&context.dockerfile), "--tag", &tag]);
        match self {
            Self::Buildah | Self::Podman => arguments.extend(words([
                "--isolation",
                "chroot",
                "--network",
                "host",
                "--format",
                "oci",
                "--layers",
                "--pull=false",
            ])),
            Self::Docker => arguments.extend(words(["--network", "host", "--progress", "plain"])),
            Self::Nerdctl => arguments.extend(words(["--progress", "plain"])),
        }
        arguments.push(format!("--label={label}={value}"));
        if let Some(bundle) = &around.certificates {
            arguments.push(format!(
                "--secret=id=ca-certificates,src={}",
                bundle.display()
            ));
        }
        if let Some(apt) = around.apt.as_ref().filter(|_| self.is_daemonless()) {
            let target = "/etc/apt/apt.conf.d/99-from-the-builder:ro";
            arguments.push(format!("--volume={}:{target}", apt.display()));
        }
        let named = context
            .build_args
            .iter()
            .chain(around.proxies.iter().map(|(k, v)| (k, v)));
        arguments.extend(named.map(|(name, value)| format!("--build-arg={name}={value}")));
        arguments.push(text(&context.context_dir).to_owned());
        arguments
    }

    /// Writes an image to an archive.
    pub(super) fn export(self, name: &str, archive: &Path) -> Vec<String> {
        match self {
            Self::Buildah => words([
                "push",
                name,
                &format!("oci-archive:{}:{name}", archive.display()),
            ]),
            Self::Podman => words([
                "save",
                "--format",
                "oci-archive",
                "--output",
                text(archive),
                name,
            ]),
            Self::Docker | Self::Nerdctl => words(["save", "--output", text(archive), name]),
        }
    }

    /// Succeeds where the image is there.
    pub(super) fn inspect(self, name: &str) -> Vec<String> {
        match self {
            Self::Buildah => words(["inspect", "--type", "image", name]),
            Self::Podman | Self::Docker | Self::Nerdctl => words(["image", "inspect", name]),
        }
    }

    /// Pulls an image from its registry.
    pub(crate) fn pull(self, name: &str) -> Vec<String> {
        words(["pull", name])
    }

    /// Takes in an archive as `docker save` writes it.
    pub(crate) fn load(self, archive: &Path) -> Vec<String> {
        match self {
            Self::Buildah => words(["pull", &format!("docker-archive:{}", archive.display())]),
            Self::Podman | Self::Docker | Self::Nerdctl => {
                words(["load", "--input", text(archive)])
            }
        }
    }
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).into()
}

/// The path as text; what is no UTF-8 in it, no file of ours has.
fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[track_caller]
    fn check(tool: Tool, expected: &Expect) {
        let context = BuildContext {
            dockerfile: "runtimes/node/Dockerfile".into(),
            context_dir: "runtimes".into(),
            tag: "openruntimes/node:v5-22".parse().unwrap(),
            build_args: [("VERSION".to_owned(), "22".to_owned())].into(),
        };
        let around = Surroundings {
            certificates: Some("/ca.crt".into()),
            apt: Some("/apt.conf".into()),
            proxies: vec![("no_proxy".to_owned(), "a".to_owned())],
        };
        let name = context.tag.to_string();
        let storage = tool.storage(Some(Path::new("/root")));
        let calls = [
            [storage, tool.build(&context, ("made-of", "x"), &around)].concat(),
            tool.export(&name, Path::new("/out.tar")),
            tool.inspect(&name),
            tool.load(Path::new("/in.tar")),
        ];
        let calls = calls.map(|call| format!("{} {}\n", tool.program(), call.join(" ")));
        expected.assert_eq(&calls.concat());
    }

    #[test]
    fn asks_each_tool_in_its_own_words() {
        check(
            Tool::Buildah,
            &expect![[r#"
                buildah --root /root --runroot /root/run build --file runtimes/node/Dockerfile --tag docker.io/openruntimes/node:v5-22 --isolation chroot --network host --format oci --layers --pull=false --label=made-of=x --secret=id=ca-certificates,src=/ca.crt --volume=/apt.conf:/etc/apt/apt.conf.d/99-from-the-builder:ro --build-arg=VERSION=22 --build-arg=no_proxy=a runtimes
                buildah push docker.io/openruntimes/node:v5-22 oci-archive:/out.tar:docker.io/openruntimes/node:v5-22
                buildah inspect --type image docker.io/openruntimes/node:v5-22
                buildah pull docker-archive:/in.tar
            "#]],
        );
        check(
            Tool::Podman,
            &expect![[r#"
                podman --root /root --runroot /root/run build --file runtimes/node/Dockerfile --tag docker.io/openruntimes/node:v5-22 --isolation chroot --network host --format oci --layers --pull=false --label=made-of=x --secret=id=ca-certificates,src=/ca.crt --volume=/apt.conf:/etc/apt/apt.conf.d/99-from-the-builder:ro --build-arg=VERSION=22 --build-arg=no_proxy=a runtimes
                podman save --format oci-archive --output /out.tar docker.io/openruntimes/node:v5-22
                podman image inspect docker.io/openruntimes/node:v5-22
                podman load --input /in.tar
            "#]],
        );
        check(
            Tool::Docker,
            &expect![[r#"
                docker build --file runtimes/node/Dockerfile --tag docker.io/openruntimes/node:v5-22 --network host --progress plain --label=made-of=x --secret=id=ca-certificates,src=/ca.crt --build-arg=VERSION=22 --build-arg=no_proxy=a runtimes
                docker save --output /out.tar docker.io/openruntimes/node:v5-22
                docker image inspect docker.io/openruntimes/node:v5-22
                docker load --input /in.tar
            "#]],
        );
        check(
            Tool::Nerdctl,
            &expect![[r#"
                nerdctl build --file runtimes/node/Dockerfile --tag docker.io/openruntimes/node:v5-22 --progress plain --label=made-of=x --secret=id=ca-certificates,src=/ca.crt --build-arg=VERSION=22 --build-arg=no_proxy=a runtimes
                nerdctl save --output /out.tar docker.io/openruntimes/node:v5-22
                nerdctl image inspect docker.io/openruntimes/node:v5-22
                nerdctl load --input /in.tar
            "#]],
        );
    }
}
