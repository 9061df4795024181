//! What a tar entry claims to be, checked before anything is made of it.
//!
//! Formats: POSIX ustar and pax (`path` and `linkpath`), and GNU's long names.

use std::{ffi::OsString, io::Read, os::unix::ffi::OsStringExt, path::PathBuf};

use tar::EntryType;

use super::{Limits, UnpackError};

/// Extended headers and long names are a few paths; larger ones are an attack.
const MAX_EXTENSION_BYTES: u64 = 64 * 1024;

/// Where the links of virtual environments point: the image's programs, in the sandbox.
const PROGRAMS: &[u8] = b"/usr/";

/// An entry whose name and kind are harmless.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Name,
    pub(super) kind: Kind,
}

/// What an entry is.
#[derive(Debug)]
pub(super) enum Kind {
    Directory,
    File {
        size: u64,
        is_executable: bool,
    },
    /// Its target as written.
    Symlink(OsString),
    Hardlink(Name),
}

/// A relative name of plain components, without `.` and `..`. The root's has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name(pub(super) Vec<OsString>);

impl Name {
    pub(super) fn to_path(&self) -> PathBuf {
        self.0.iter().collect()
    }
}

/// What came of a header.
pub(super) enum Next {
    /// It describes the entry that follows.
    More,
    Entry(Entry),
}

/// What the headers before an entry say of it.
#[derive(Debug, Default)]
pub(super) struct Pending {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<Vec<u8>>,
}

impl Entry {
    /// Its name for messages.
    pub(super) fn shown(&self) -> String {
        self.name.to_path().to_string_lossy().into_owned()
    }
}

impl Pending {
    /// Reads one header, and its data where that describes the next entry.
    pub(super) fn read<R: Read>(
        &mut self,
        data: &mut tar::Entry<'_, R>,
        limits: &Limits,
    ) -> Result<Next, UnpackError> {
        match data.header().entry_type() {
            EntryType::GNULongName => self.path = Some(until_nul(extension(data)?)),
            EntryType::GNULongLink => self.link = Some(until_nul(extension(data)?)),
            EntryType::XHeader => self.extend(&extension(data)?, false)?,
            EntryType::XGlobalHeader => self.extend(&extension(data)?, true)?,
            _ => return self.entry(data, limits).map(Next::Entry),
        }
        Ok(Next::More)
    }

    /// Takes what an extended header says. A global one may only hold what is left out here anyway.
    fn extend(&mut self, text: &[u8], is_global: bool) -> Result<(), UnpackError> {
        for record in tar::PaxExtensions::new(text) {
            let record = record.map_err(|source| UnpackError::Malformed {
                entry: lossy(self.path.as_deref().unwrap_or_default()),
                source,
            })?;
            let value = Some(record.value_bytes().to_vec());
            match record.key_bytes() {
                b"path" | b"linkpath" | b"size" if is_global => {
                    return Err(special(text, "described by a global header"));
                }
                b"path" => self.path = value,
                b"linkpath" => self.link = value,
                b"size" => self.size = value,
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(special(
                        self.path.as_deref().unwrap_or_default(),
                        "a sparse file",
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn entry<R: Read>(
        &mut self,
        data: &tar::Entry<'_, R>,
        limits: &Limits,
    ) -> Result<Entry, UnpackError> {
        let header = data.header();
        let raw = match self.path.take() {
            Some(path) => path,
            None => header.path_bytes().into_owned(),
        };
        let malformed = |source| UnpackError::Malformed {
            entry: lossy(&raw),
            source,
        };
        let size = header.entry_size().map_err(malformed)?;
        if self
            .size
            .as_ref()
            .is_some_and(|text| *text != size.to_string().into_bytes())
        {
            // Tools disagree on which size counts, and so on where the next header is.
            return Err(special(&raw, "given two sizes"));
        }
        let name = name(&raw, limits)?;
        let link = || {
            let in_header = || header.link_name_bytes().map(|bytes| bytes.into_owned());
            self.link.clone().or_else(in_header).unwrap_or_default()
        };
        let kind = match header.entry_type() {
            EntryType::Directory => Kind::Directory,
            // Archives older than POSIX mark directories by their names only.
            EntryType::Regular if raw.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File {
                size,
                is_executable: header.mode().map_err(malformed)? & 0o100 != 0,
            },
            EntryType::Symlink => symlink(&raw, &name, &link(), limits)?,
            EntryType::Link => hardlink(&raw, &link(), limits)?,
            EntryType::Char | EntryType::Block => return Err(special(&raw, "a device")),
            EntryType::Fifo => return Err(special(&raw, "a FIFO")),
            EntryType::GNUSparse => return Err(special(&raw, "a sparse file")),
            _ => return Err(special(&raw, "of an unknown kind")),
        };
        if name.0.is_empty() && !matches!(kind, Kind::Directory) {
            return Err(bad_name(&raw, "is empty"));
        }
        Ok(Entry { name, kind })
    }
}

/// A name that stays beneath the root whatever is there.
fn name(raw: &[u8], limits: &Limits) -> Result<Name, UnpackError> {
    if raw.len() > limits.name_bytes {
        return Err(bad_name(raw, "is too long"));
    }
    if raw.contains(&0) {
        return Err(bad_name(raw, "holds a NUL"));
    }
    if raw.starts_with(b"/") {
        return Err(bad_name(raw, "is absolute"));
    }
    let mut components = Vec::new();
    for component in raw.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(bad_name(raw, "points out of the archive")),
            long if long.len() > 255 => return Err(bad_name(raw, "is too long")),
            plain => components.push(OsString::from_vec(plain.to_vec())),
        }
    }
    if components.len() > limits.depth {
        return Err(bad_name(raw, "is too deep"));
    }
    Ok(Name(components))
}

/// `..` may only stand at the target's start: there it climbs out of real directories, the link's own,
/// and can be counted. After another link it could climb from anywhere.
fn symlink(raw: &[u8], name: &Name, target: &[u8], limits: &Limits) -> Result<Kind, UnpackError> {
    let kind = Kind::Symlink(OsString::from_vec(target.to_vec()));
    if target.is_empty() || target.len() > limits.name_bytes || target.contains(&0) {
        return Err(bad_link(raw, target, "is no name"));
    }
    let mut components = target.split(|byte| *byte == b'/');
    if target.starts_with(b"/") {
        let is_clean = !components.any(|component| component == b"..");
        if target.starts_with(PROGRAMS) && is_clean {
            return Ok(kind);
        }
        return Err(bad_link(raw, target, "is absolute"));
    }
    let above = name.0.len().saturating_sub(1);
    let (mut n_up, mut is_down) = (0, false);
    for component in components {
        match component {
            b"" | b"." => {}
            b".." if is_down => return Err(bad_link(raw, target, "goes down and up again")),
            b".." => n_up += 1,
            _ => is_down = true,
        }
    }
    if n_up > above {
        return Err(bad_link(raw, target, "points out of the archive"));
    }
    Ok(kind)
}

fn hardlink(raw: &[u8], target: &[u8], limits: &Limits) -> Result<Kind, UnpackError> {
    match name(target, limits) {
        Ok(name) if name.0.is_empty() => Err(bad_link(raw, target, "is no name")),
        Ok(name) => Ok(Kind::Hardlink(name)),
        Err(UnpackError::Name { what, .. }) => Err(bad_link(raw, target, what)),
        Err(other) => Err(other),
    }
}

/// The data of a header that describes the next entry.
fn extension<R: Read>(data: &mut tar::Entry<'_, R>) -> Result<Vec<u8>, UnpackError> {
    let mut text = Vec::new();
    let too_large = |limit| UnpackError::TooLarge {
        entry: String::new(),
        what: "has too large an extended header",
        limit,
    };
    let size = data.header().entry_size().unwrap_or(u64::MAX);
    if size > MAX_EXTENSION_BYTES {
        return Err(too_large(MAX_EXTENSION_BYTES));
    }
    let read = data.take(MAX_EXTENSION_BYTES).read_to_end(&mut text);
    match read {
        Ok(n) if n as u64 == size => Ok(text),
        Ok(_) => Err(UnpackError::Malformed {
            entry: String::new(),
            source: std::io::ErrorKind::UnexpectedEof.into(),
        }),
        Err(source) => Err(UnpackError::Malformed {
            entry: String::new(),
            source,
        }),
    }
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|byte| *byte == 0) {
        text.truncate(end);
    }
    text
}

/// A name for messages: what is no text replaced, the end cut off.
fn lossy(raw: &[u8]) -> String {
    String::from_utf8_lossy(&raw[..raw.len().min(256)]).into_owned()
}

fn bad_name(raw: &[u8], what: &'static str) -> UnpackError {
    UnpackError::Name {
        entry: lossy(raw),
        what,
    }
}

fn bad_link(raw: &[u8], target: &[u8], what: &'static str) -> UnpackError {
    UnpackError::Link {
        entry: lossy(raw),
        target: lossy(target),
        what,
    }
}

fn special(raw: &[u8], what: &'static str) -> UnpackError {
    UnpackError::Special {
        entry: lossy(raw),
        what,
    }
}
