//! `opr init`: a new function's folder, made of its language's example.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use super::{client::Missing, output::Output, pack};
use crate::{
    function::{Catalog, examples},
    id::FunctionName,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Its language, as in node, or as in php-8.2 for another version than the first.
    #[arg(value_name = "LANG")]
    language: String,
    /// The folder to make. Its last part is the function's name.
    #[arg(value_name = "NAME")]
    folder: PathBuf,
}

/// Asks no node and needs no settings.
pub(super) fn run(output: Output, args: &Args) -> anyhow::Result<()> {
    let folder = &args.folder;
    check_name(folder)?;
    let catalog = Catalog::load(None)?;
    let runtime = catalog.find(&args.language).ok();
    let example = runtime.and_then(|runtime| Some((examples::example(&runtime.family)?, runtime)));
    let Some((files, runtime)) = example else {
        bail!(unknown(&args.language, &catalog));
    };
    make(folder)?;
    for (name, content) in files {
        write(&folder.join(name), content)?;
    }
    // The folder tells a deployment its language, but neither each language nor the version.
    let is_told = args.language == runtime.family
        && pack::guess_runtime(folder) == Some(runtime.family.as_str());
    let mut next = format!("opr deploy {}", folder.display());
    if !is_told {
        next += &format!(" --runtime {}", args.language);
    }
    let names: Vec<_> = files.iter().map(|(name, _)| *name).collect();
    let made = serde_json::json!({
        "folder": folder, "runtime": runtime.name, "files": names, "next": next,
    });
    output.result(&made, |_| {
        let names = names.join(", ");
        format!("{} has {names}\nnext: {next}\n", folder.display())
    });
    Ok(())
}

/// A deployment names the function after its folder.
fn check_name(folder: &Path) -> anyhow::Result<()> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let name = FunctionName::try_new(name);
    name.with_context(|| format!("{} cannot be a function's folder", folder.display()))?;
    Ok(())
}

fn unknown(language: &str, catalog: &Catalog) -> Missing {
    let mut known: Vec<_> = catalog.list().iter().map(|r| r.family.as_str()).collect();
    known.dedup();
    known.retain(|family| examples::example(family).is_some());
    let known = known.join(", ");
    Missing(format!(
        "there is no language {language:?}; this node knows {known}"
    ))
}

/// Makes the folder, or takes an empty one.
fn make(folder: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot make {}", folder.display());
    match fs::read_dir(folder).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => bail!("{} is not empty", folder.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(folder).with_context(failed)
        }
        Err(error) => Err(error).with_context(failed),
    }
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let folder = path.parent().expect("it is below the function's folder");
    fs::create_dir_all(folder).with_context(failed)?;
    fs::write(path, content).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init(language: &str, folder: &Path) -> anyhow::Result<()> {
        let args = Args {
            language: language.into(),
            folder: folder.into(),
        };
        run(Output::new(true), &args)
    }

    #[test]
    fn every_language_of_the_catalogue_can_be_packed_and_deployed() {
        let dir = tempfile::tempdir().unwrap();
        for runtime in Catalog::load(None).unwrap().list() {
            let folder = dir.path().join(runtime.name.replace('.', "-"));
            init(&runtime.name, &folder).unwrap();
            assert!(
                folder.join(&runtime.entrypoint).is_file(),
                "{}",
                runtime.name
            );
            pack::pack(&folder, tempfile::tempfile().unwrap()).unwrap();
        }
    }

    #[test]
    fn an_empty_folder_is_taken_and_another_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("hello");
        fs::create_dir(&folder).unwrap();
        init("node", &folder).unwrap();
        fs::write(folder.join("index.js"), "mine").unwrap();
        let error = init("python", &folder).unwrap_err().to_string();
        assert!(error.ends_with("hello is not empty"), "{error}");
        assert_eq!(fs::read_to_string(folder.join("index.js")).unwrap(), "mine");
        assert!(!folder.join("main.py").exists());
        let error = init("node", &folder.join("index.js")).unwrap_err();
        assert!(error.to_string().starts_with("cannot make"), "{error:#}");
    }

    #[test]
    fn nothing_is_made_for_an_unknown_language_or_a_name_that_is_none() {
        let dir = tempfile::tempdir().unwrap();
        for (language, name) in [("cobol", "hello"), ("node", "Hello World"), ("node", "..")] {
            init(language, &dir.path().join(name)).unwrap_err();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
