//! The `.open-runtimes` file of a built function: `KEY=value` lines that become its environment.
//!
//! ```text
//! OPEN_RUNTIMES_ENTRYPOINT=index.js
//! OPEN_RUNTIMES_CLEANUP=none
//! ```
//!
//! The build ran the tenant's commands, so the file is hostile: it is read up to a cap and never executed.

use std::{collections::BTreeMap, fs::File, io, io::Read as _, path::Path};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};

/// Its name in the root of the artifact.
pub const FILE: &str = ".open-runtimes";

const MAX_BYTES: usize = 64 * 1024;
const MAX_VARIABLES: usize = 256;

/// The variables that the code in `directory` asks for; none where it has no such file.
///
/// # Errors
/// The file cannot be read, is no regular file or is larger than 64 KiB.
pub fn read(directory: &Path) -> io::Result<BTreeMap<String, String>> {
    let root = openat(
        CWD,
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(&root, FILE, flags, Mode::empty(), resolve) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    };
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other(format!("{FILE} is no regular file")));
    }
    let mut bytes = Vec::new();
    File::from(file)
        .take(MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() > MAX_BYTES {
        return Err(io::Error::other(format!(
            "{FILE} is larger than {MAX_BYTES} bytes"
        )));
    }
    Ok(parse(&bytes))
}

/// The variables of such a file. Lines that set none are skipped; of one name the last line wins.
/// One pair of quotes around a value is taken off.
///
/// The first 256 names count.
pub fn parse(text: &[u8]) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // What is no UTF-8 or holds a NUL cannot be in an environment that JSON carries.
        let Some((key, value)) = std::str::from_utf8(line)
            .ok()
            .and_then(|l| l.split_once('='))
        else {
            continue;
        };
        let has_room = variables.len() < MAX_VARIABLES || variables.contains_key(key);
        if is_variable(key) && !value.contains('\0') && has_room {
            variables.insert(key.to_owned(), unquote(value).to_owned());
        }
    }
    variables
}

/// Whether a shell would take this as a variable's name.
pub fn is_variable(key: &str) -> bool {
    key.bytes().enumerate().all(|(at, byte)| {
        byte == b'_' || byte.is_ascii_alphabetic() || at > 0 && byte.is_ascii_digit()
    }) && !key.is_empty()
}

fn unquote(value: &str) -> &str {
    ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[(&str, &str)]) {
        let found = parse(text.as_bytes());
        let found: Vec<_> = found
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(found, expected, "{text:?}");
    }

    #[test]
    fn reads_assignments_and_executes_nothing() {
        check(
            "OPEN_RUNTIMES_ENTRYPOINT=index.js\nB=\n",
            &[("B", ""), ("OPEN_RUNTIMES_ENTRYPOINT", "index.js")],
        );
        check("A=\"x y\"\r\nB='$(id)'", &[("A", "x y"), ("B", "$(id)")]);
        check("A=1\nA=2=3", &[("A", "2=3")]);
        check("A=\"x", &[("A", "\"x")]);
        check("A='", &[("A", "'")]);
        check("1A=x\n=x\nA B=x\nexport C=x\n# D=x\nE", &[]);
        check("A=x\0y", &[]);
    }

    #[test]
    fn more_variables_than_the_cap_are_left_out() {
        let text: String = (0..10_000).map(|n| format!("V{n}=1\n")).collect();
        assert_eq!(parse(text.as_bytes()).len(), MAX_VARIABLES);
    }

    #[test]
    fn reads_a_regular_file_of_bounded_size_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        assert_eq!(read(dir.path()).unwrap(), BTreeMap::new());
        std::fs::write(&file, "A=1").unwrap();
        assert_eq!(read(dir.path()).unwrap()["A"], "1");
        std::fs::write(&file, vec![b'a'; MAX_BYTES + 1]).unwrap();
        assert!(
            read(dir.path())
                .unwrap_err()
                .to_string()
                .contains("larger than")
        );
        std::fs::remove_file(&file).unwrap();
        symlink("/etc/passwd", &file).unwrap();
        assert!(read(dir.path()).is_err());
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert!(read(dir.path()).is_err());
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_names_are_valid_and_few(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            let found = parse(&bytes);
            prop_assert!(found.len() <= MAX_VARIABLES);
            for (key, value) in found {
                prop_assert!(is_variable(&key) && !value.contains(['\0', '\n']));
            }
        }
    }
}
