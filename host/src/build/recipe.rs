//! What a build runs: the runtime's own `helpers/build.sh` on the source, in a sandbox of class `build`.

use std::path::Path;

use super::cache;
use crate::{
    adapter::{Mount, Source},
    config::Limits,
    executor::job::JobSpec,
    function::{ENTRYPOINT, Function, Runtime, catalog::Install},
    id::{ClassName, InstanceId},
};

/// The build's output directory in [`crate::executor::job::Job::scratch`].
pub(super) const CODE: &str = "code";

/// Runs in the image's working directory, `/usr/local/server`. Owners in the archive mean nothing here.
const SCRIPT: &str = "tar --no-same-owner -zxf /tmp/source.tar.gz -C /mnt/code \
     && { [ ! -f /tmp/stores.sqfs ] || cp /tmp/stores.sqfs /cache/ || rm -f /cache/stores.sqfs; } \
     && exec bash helpers/build.sh \"$OPR_BUILD_COMMAND\"";

/// Package managers and compilers need more than a function does; the class weighs builds against functions.
const LIMITS: Limits = Limits {
    cpus: 0.0,
    memory_bytes: 2 << 30,
};

/// The class of builds.
pub(super) fn class() -> ClassName {
    ClassName::try_new("build").expect("a constant that is a name")
}

/// Files of this host that a build begins with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    /// The archive of the source.
    pub(super) source: &'a Path,
    /// What an earlier build kept.
    pub(super) cache: Option<&'a Path>,
}

/// The job that builds `function`.
pub(super) fn job(
    id: i64,
    function: &Function,
    runtime: &Runtime,
    command: Option<&str>,
    inputs: Inputs,
) -> JobSpec {
    let name = function.name.as_str();
    let name = &name[..name.len().min(40)];
    let scratch = |name: &str, target: &str| Mount {
        source: Source::Scratch(name.into()),
        target: target.into(),
        is_writable: true,
    };
    let host = |file: &Path, target: &str| Mount {
        source: Source::Host(file.to_owned()),
        target: target.into(),
        is_writable: false,
    };
    JobSpec {
        id: InstanceId::try_new(format!("{name}.build-{id}"))
            .expect("the start of a name and a number are a name"),
        class: class(),
        image: runtime.image.clone(),
        command: ["bash", "-c", SCRIPT].map(Into::into).to_vec(),
        env: env(function, runtime, command),
        mounts: [
            scratch("tmp", "/tmp"),
            scratch(CODE, "/mnt/code"),
            scratch(cache::FOLDER, "/cache"),
            host(inputs.source, "/tmp/source.tar.gz"),
        ]
        .into_iter()
        .chain(inputs.cache.map(|cache| host(cache, "/tmp/stores.sqfs")))
        .collect(),
        limits: LIMITS,
    }
}

/// The function's variables, and after them those that the build relies on: the later of one name wins.
fn env(function: &Function, runtime: &Runtime, command: Option<&str>) -> Vec<(String, String)> {
    let command = match (command, &runtime.build) {
        (Some(command), _) => command.to_owned(),
        (None, Some(install)) => install_command(install),
        (None, None) => String::new(),
    };
    let own = [
        (ENTRYPOINT, function.entrypoint.as_str()),
        ("OPEN_RUNTIMES_BUILD_INPUT_DIR", "/mnt/code"),
        ("OPEN_RUNTIMES_BUILD_OUTPUT_DIR", "/mnt/code"),
        // The archive is unpacked once and soon: what is small is not worth compressing.
        ("OPEN_RUNTIMES_BUILD_COMPRESSION", "auto"),
        ("CI", "true"),
        ("OPR_BUILD_COMMAND", &command),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let variables = function.variables.clone().into_iter();
    variables.chain(own).collect()
}

/// Installs where the manifest is; the command runs where the source is. So the host need not look into
/// the source.
fn install_command(install: &Install) -> String {
    let manifest = install.manifest.replace('\'', "'\\''");
    format!("if [ -f '{manifest}' ]; then {}; fi", install.command)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::function::{Catalog, tests::function};

    fn spec(command: Option<&str>) -> JobSpec {
        let runtime = Catalog::load(None).unwrap().find("node").unwrap();
        let mut function = function("hello");
        function
            .variables
            .insert("OPEN_RUNTIMES_BUILD_COMPRESSION".into(), "squashfs".into());
        job(
            7,
            &function,
            &runtime,
            command,
            Inputs {
                source: Path::new("/state/source.tar.gz"),
                cache: Some(Path::new("/state/hello.sqfs")),
            },
        )
    }

    #[track_caller]
    fn value<'a>(spec: &'a JobSpec, name: &str) -> &'a str {
        let mut env = spec.env.iter().rev();
        &env.find(|(key, _)| key == name).unwrap().1
    }

    #[test]
    fn a_build_is_a_job_of_its_class() {
        let spec = spec(None);
        let mut text = format!(
            "{} {} {}\n{:?}\n",
            spec.id, spec.class, spec.image, spec.command
        );
        for mount in &spec.mounts {
            text += &format!("{mount:?}\n");
        }
        for (name, value) in &spec.env {
            text += &format!("{name}={value}\n");
        }
        expect![[r#"
            hello.build-7 build docker.io/openruntimes/node:v5-22
            ["bash", "-c", "tar --no-same-owner -zxf /tmp/source.tar.gz -C /mnt/code && { [ ! -f /tmp/stores.sqfs ] || cp /tmp/stores.sqfs /cache/ || rm -f /cache/stores.sqfs; } && exec bash helpers/build.sh \"$OPR_BUILD_COMMAND\""]
            Mount { source: Scratch("tmp"), target: "/tmp", is_writable: true }
            Mount { source: Scratch("code"), target: "/mnt/code", is_writable: true }
            Mount { source: Scratch("cache"), target: "/cache", is_writable: true }
            Mount { source: Host("/state/source.tar.gz"), target: "/tmp/source.tar.gz", is_writable: false }
            Mount { source: Host("/state/hello.sqfs"), target: "/tmp/stores.sqfs", is_writable: false }
            GREETING=hello
            OPEN_RUNTIMES_BUILD_COMPRESSION=squashfs
            OPEN_RUNTIMES_ENTRYPOINT=index.js
            OPEN_RUNTIMES_BUILD_INPUT_DIR=/mnt/code
            OPEN_RUNTIMES_BUILD_OUTPUT_DIR=/mnt/code
            OPEN_RUNTIMES_BUILD_COMPRESSION=auto
            CI=true
            OPR_BUILD_COMMAND=if [ -f 'package.json' ]; then npm install; fi
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn a_deployments_command_wins_over_the_catalogues() {
        assert_eq!(
            value(&spec(None), "OPR_BUILD_COMMAND"),
            "if [ -f 'package.json' ]; then npm install; fi"
        );
        assert_eq!(value(&spec(Some("make")), "OPR_BUILD_COMMAND"), "make");
        assert_eq!(value(&spec(Some("")), "OPR_BUILD_COMMAND"), "");
    }

    #[test]
    fn variables_do_not_change_what_the_build_relies_on() {
        let spec = spec(None);
        assert_eq!(value(&spec, "OPEN_RUNTIMES_BUILD_COMPRESSION"), "auto");
        assert_eq!(value(&spec, "GREETING"), "hello");
    }

    #[test]
    fn the_install_command_is_one_that_a_shell_understands() {
        #[track_caller]
        fn check(manifest: &str, expected: &str) {
            let install = Install {
                manifest: manifest.into(),
                command: "echo installed".into(),
            };
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("it's"), "").unwrap();
            let output = std::process::Command::new("bash")
                .args(["-c", &install_command(&install)])
                .current_dir(dir.path())
                .output()
                .unwrap();
            assert!(output.status.success());
            assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
        }
        check("it's", "installed\n");
        check("absent", "");
    }
}
