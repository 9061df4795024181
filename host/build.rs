//! Puts the examples of `runtimes/` into the program, as it does the catalogue: where only the program is installed,
//! `opr init` has them.

use std::{
    env,
    error::Error,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

fn main() -> Result<(), Box<dyn Error>> {
    let runtimes = Path::new(&env::var("CARGO_MANIFEST_DIR")?)
        .join("../runtimes")
        .canonicalize()?;
    // A new language is a new line there.
    watch(&runtimes.join("catalog.toml"));
    let mut table = String::from("&[\n");
    for runtime in sorted(&runtimes)? {
        let example = runtime.join("example");
        if !example.is_dir() {
            continue;
        }
        watch(&example);
        let mut files = Vec::new();
        find(&example, &mut files)?;
        let language = runtime.file_name().unwrap_or_default();
        writeln!(table, "    ({:?}, &[", language.to_string_lossy())?;
        for file in files {
            let name = file.strip_prefix(&example)?;
            let (name, file) = (name.to_string_lossy(), file.to_string_lossy());
            writeln!(table, "        ({name:?}, include_bytes!({file:?})),")?;
        }
        table.push_str("    ]),\n");
    }
    table.push_str("]\n");
    fs::write(Path::new(&env::var("OUT_DIR")?).join("examples.rs"), table)?;
    Ok(())
}

fn watch(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        paths.push(entry?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Files below `folder`, by name.
fn find(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for path in sorted(folder)? {
        if path.is_dir() {
            find(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
