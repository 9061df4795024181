use std::{
    fs,
    io::Write as _,
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::Path,
};

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use tar::{EntryType, Header};

use super::*;

/// One entry: its type, name, link target and data.
pub(crate) type Item<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

const FILE: EntryType = EntryType::Regular;
const DIR: EntryType = EntryType::Directory;
const SYMLINK: EntryType = EntryType::Symlink;
const HARDLINK: EntryType = EntryType::Link;

fn put(bytes: &mut Vec<u8>, (kind, name, link, data): Item<'_>, size: u64, mode: u32) {
    let mut header = Header::new_ustar();
    // Written as they are: the crate's setters refuse what is to be tested.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(1234);
    header.set_gid(1234);
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
}

/// A tar archive of these entries.
pub(crate) fn tar(items: &[Item<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for item in items {
        put(&mut bytes, *item, item.3.len() as u64, 0o644);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn unpack_to(archive: &[u8], limits: &Limits, dir: &Path) -> Result<Summary, UnpackError> {
    let root = fs::File::open(dir).unwrap();
    unpack(archive, root.as_fd(), limits)
}

/// What is below a directory: sorted lines of `mode path`, with a link's target.
fn listing(dir: &Path) -> Vec<String> {
    fn walk(dir: &Path, root: &Path, lines: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().display();
            match fs::read_link(&path) {
                Ok(target) => lines.push(format!("link {name} -> {}", target.display())),
                Err(_) => lines.push(format!("{:o} {name}", meta.permissions().mode())),
            }
            if meta.is_dir() {
                walk(&path, root, lines);
            }
        }
    }
    let mut lines = Vec::new();
    walk(dir, dir, &mut lines);
    lines.sort();
    lines
}

#[track_caller]
fn unpacks(items: &[Item<'_>], expected: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    unpack_to(&tar(items), &Limits::default(), dir.path()).unwrap();
    assert_eq!(listing(dir.path()), expected);
}

#[track_caller]
fn refuses(items: &[Item<'_>], expected: &str) {
    refuses_bytes(&tar(items), &Limits::default(), expected);
}

/// Unpacks into a directory of its own beside a file that must stay as it is.
#[track_caller]
fn refuses_bytes(archive: &[u8], limits: &Limits, expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (outside, inside) = (dir.path().join("outside"), dir.path().join("inside"));
    fs::write(&outside, "as it was").unwrap();
    fs::create_dir(&inside).unwrap();
    let error = unpack_to(archive, limits, &inside).unwrap_err();
    assert!(error.is_archives_fault(), "{error:?}");
    assert!(error.to_string().contains(expected), "{error}");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "as it was");
    assert_eq!(fs::metadata(&outside).unwrap().nlink(), 1);
}

#[test]
fn unpacks_what_tools_write() {
    unpacks(
        &[
            (DIR, "./", "", b""),
            (FILE, "./index.js", "", b"1"),
            (DIR, "./node_modules/.bin/", "", b""),
            (FILE, "./node_modules/a/cli.js", "", b"2"),
            (SYMLINK, "./node_modules/.bin/a", "../a/cli.js", b""),
            (HARDLINK, "./node_modules/b", "./node_modules/a/cli.js", b""),
            (SYMLINK, "./env/bin/python3", "/usr/bin/python3", b""),
            (SYMLINK, "./broken", "nowhere", b""),
            (FILE, "./index.js", "", b"replaced"),
        ],
        &[
            "100644 index.js",
            "100644 node_modules/a/cli.js",
            "100644 node_modules/b",
            "40755 env",
            "40755 env/bin",
            "40755 node_modules",
            "40755 node_modules/.bin",
            "40755 node_modules/a",
            "link broken -> nowhere",
            "link env/bin/python3 -> /usr/bin/python3",
            "link node_modules/.bin/a -> ../a/cli.js",
        ],
    );
}

#[test]
fn rights_beyond_reading_and_executing_are_left_out() {
    let mut bytes = Vec::new();
    put(&mut bytes, (FILE, "setuid", "", b""), 0, 0o6777);
    put(&mut bytes, (FILE, "secret", "", b""), 0, 0o000);
    put(&mut bytes, (DIR, "sticky", "", b""), 0, 0o7777);
    let dir = tempfile::tempdir().unwrap();
    unpack_to(&bytes, &Limits::default(), dir.path()).unwrap();
    assert_eq!(
        listing(dir.path()),
        ["100644 secret", "100755 setuid", "40755 sticky"]
    );
    let owner = fs::metadata(dir.path().join("setuid")).unwrap().uid();
    assert_eq!(owner, fs::metadata(dir.path()).unwrap().uid());
}

#[test]
fn the_content_tells_the_compression() {
    let plain = tar(&[(FILE, "a", "", b"content")]);
    let halves: Vec<u8> = plain.chunks(700).flat_map(gzip).collect();
    let zstd = zstd::encode_all(plain.as_slice(), 3).unwrap();
    for archive in [plain.clone(), gzip(&plain), halves, zstd] {
        let dir = tempfile::tempdir().unwrap();
        unpack_to(&archive, &Limits::default(), dir.path()).unwrap();
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"content");
    }
}

#[test]
fn long_names_are_read_in_both_formats() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, &long, b"1".as_slice())
        .unwrap();
    let record = format!("path={long}2\n");
    let length = record.len() + 4;
    let record = format!("{length} {record}");
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend(tar(&[
        (EntryType::XHeader, "pax", "", record.as_bytes()),
        (FILE, "short", "", b"2"),
    ]));
    let dir = tempfile::tempdir().unwrap();
    unpack_to(&bytes, &Limits::default(), dir.path()).unwrap();
    assert_eq!(fs::read(dir.path().join(&long)).unwrap(), b"1");
    let other = dir.path().join(format!("{long}2"));
    assert_eq!(fs::read(other).unwrap(), b"2");
}

#[test]
fn names_outside_of_the_target_are_refused() {
    refuses(
        &[(FILE, "../outside", "", b"x")],
        r#"entry "../outside" has a name that points out of the archive"#,
    );
    refuses(&[(FILE, "a/../../outside", "", b"x")], "points out");
    refuses(&[(DIR, "..", "", b"")], "points out");
    refuses(&[(FILE, "/etc/passwd", "", b"x")], "is absolute");
    refuses(&[(FILE, "", "", b"x")], "is empty");
    let record = b"20 path=../outside1\n";
    let pax = (EntryType::XHeader, "pax", "", record.as_slice());
    refuses(&[pax, (FILE, "a", "", b"x")], "points out");
    let long = (EntryType::GNULongName, "l", "", b"../outside\0".as_slice());
    refuses(&[long, (FILE, "a", "", b"x")], "points out");
}

#[test]
fn links_out_of_the_target_are_refused() {
    refuses(
        &[(SYMLINK, "a", "/etc/passwd", b"")],
        r#"entry "a" is a link to "/etc/passwd", which is absolute"#,
    );
    refuses(&[(SYMLINK, "a", "/usr/../etc/passwd", b"")], "is absolute");
    refuses(&[(SYMLINK, "a", "../outside", b"")], "points out");
    refuses(&[(SYMLINK, "d/a", "../../outside", b"")], "points out");
    refuses(&[(SYMLINK, "a", "b/../../outside", b"")], "down and up");
    refuses(&[(SYMLINK, "a", "", b"")], "is no name");
    refuses(&[(HARDLINK, "a", "/etc/passwd", b"")], "is absolute");
    refuses(&[(HARDLINK, "a", "../outside", b"")], "points out");
    refuses(&[(HARDLINK, "a", "nothing", b"")], "is no file that came");
    refuses(
        &[(FILE, "a", "", b""), (HARDLINK, "a", "a", b"")],
        "is no file",
    );
    let link = (SYMLINK, "l", "/usr/bin/env", b"".as_slice());
    refuses(&[link, (HARDLINK, "a", "l", b"")], "is no file");
}

#[test]
fn links_are_never_followed() {
    let to_dir = (SYMLINK, "l", "/usr/lib", b"".as_slice());
    refuses(
        &[to_dir, (FILE, "l/written", "", b"x")],
        "is in the way of another one",
    );
    refuses(&[to_dir, (DIR, "l", "", b"")], "is in the way");
    let inside = (SYMLINK, "l", "d", b"".as_slice());
    let dir = (DIR, "d", "", b"".as_slice());
    refuses(&[dir, inside, (FILE, "l/a", "", b"x")], "is in the way");
    refuses(&[dir, inside, (HARDLINK, "h", "l/a", b"")], "is no file");
    refuses(&[dir, (FILE, "d", "", b"x")], "is in the way");
    // A file that takes a link's name replaces the link.
    unpacks(&[to_dir, (FILE, "l", "", b"x")], &["100644 l"]);
}

#[test]
fn what_no_function_needs_is_refused() {
    refuses(&[(EntryType::Char, "a", "", b"")], "\"a\" is a device");
    refuses(&[(EntryType::Block, "a", "", b"")], "is a device");
    refuses(&[(EntryType::Fifo, "a", "", b"")], "is a FIFO");
    refuses(&[(EntryType::GNUSparse, "a", "", b"")], "is a sparse file");
    refuses(
        &[(EntryType::new(b'Z'), "a", "", b"")],
        "of an unknown kind",
    );
    let sparse = b"24 GNU.sparse.size=1000\n";
    let pax = (EntryType::XHeader, "pax", "", sparse.as_slice());
    refuses(&[pax, (FILE, "a", "", b"x")], "is a sparse file");
    let pax = (EntryType::XHeader, "pax", "", b"10 size=9\n".as_slice());
    refuses(&[pax, (FILE, "a", "", b"x")], "is given two sizes");
    let global = (EntryType::XGlobalHeader, "g", "", b"9 path=b\n".as_slice());
    refuses(&[global, (FILE, "a", "", b"x")], "by a global header");
}

#[test]
fn a_million_entries_are_too_many() {
    let one = tar(&[(FILE, "a", "", b"")]);
    let million = io::repeat_with_block(one[..512].to_vec(), 1_000_000);
    let dir = tempfile::tempdir().unwrap();
    let root = fs::File::open(dir.path()).unwrap();
    let limits = Limits {
        entries: 1000,
        ..Limits::default()
    };
    let error = unpack(million, root.as_fd(), &limits).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the archive has too many entries, more than the 1000 that are accepted (seen at entry \"a\")"
    );
}

/// A reader of one block, again and again.
mod io {
    pub(super) fn repeat_with_block(block: Vec<u8>, times: usize) -> impl std::io::Read {
        let mut left = times;
        let mut at = 0;
        std::io::BufReader::new(Blocks(move |buffer: &mut [u8]| {
            if left == 0 {
                return 0;
            }
            let n = buffer.len().min(block.len() - at);
            buffer[..n].copy_from_slice(&block[at..at + n]);
            at += n;
            if at == block.len() {
                (at, left) = (0, left - 1);
            }
            n
        }))
    }

    struct Blocks<F>(F);

    impl<F: FnMut(&mut [u8]) -> usize> std::io::Read for Blocks<F> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            Ok((self.0)(buffer))
        }
    }
}

#[test]
fn an_archive_that_swells_is_refused() {
    let zeros = vec![0; 32 << 20];
    let bomb = gzip(&tar(&[(FILE, "zeros", "", &zeros)]));
    refuses_bytes(
        &bomb,
        &Limits::default(),
        "unpacks to too many times its size, more than the 200 that are accepted (seen at entry \"zeros\")",
    );
    let zstd = zstd::encode_all(tar(&[(FILE, "zeros", "", &zeros)]).as_slice(), 1).unwrap();
    refuses_bytes(&zstd, &Limits::default(), "too many times its size");
    // What follows an archive's end is not read.
    let after = gzip(&[tar(&[(DIR, "a", "", b"")])[..512].to_vec(), zeros].concat());
    let dir = tempfile::tempdir().unwrap();
    unpack_to(&after, &Limits::default(), dir.path()).unwrap();
}

#[test]
fn size_limits_hold() {
    let small = Limits {
        total_bytes: 4096,
        file_bytes: 2048,
        ..Limits::default()
    };
    let data = [7; 4096];
    refuses_bytes(
        &tar(&[(FILE, "a", "", &data)]),
        &small,
        "has too large a file, more than the 2048",
    );
    let many = [
        (FILE, "a", "", &data[..2000]),
        (FILE, "b", "", &data[..2000]),
    ];
    refuses_bytes(
        &tar(&many),
        &small,
        "has too many bytes, more than the 4096",
    );
    let mut huge = Vec::new();
    put(&mut huge, (FILE, "a", "", b""), 0o77777777777, 0o644);
    refuses_bytes(&huge, &small, "has too large a file");
    let long = vec![b'n'; 100_000];
    refuses_bytes(
        &tar(&[(EntryType::GNULongName, "l", "", &long)]),
        &Limits::default(),
        "has too large an extended header",
    );
    refuses_bytes(
        &tar(&[
            (EntryType::GNULongName, "l", "", &long[..2000]),
            (FILE, "a", "", b""),
        ]),
        &Limits::default(),
        "is too long",
    );
    let deep = "d/".repeat(140);
    refuses_bytes(
        &tar(&[
            (EntryType::GNULongName, "l", "", deep.as_bytes()),
            (DIR, "a", "", b""),
        ]),
        &Limits::default(),
        "is too deep",
    );
}

#[test]
fn what_is_no_archive_or_ends_early_is_refused() {
    let limits = Limits::default();
    refuses_bytes(b"PK\x03\x04rest", &limits, "zip archives are not accepted");
    refuses_bytes(b"hsqsrest", &limits, "squashfs archives are not accepted");
    refuses_bytes(&[b'x'; 2048], &limits, "is no intact tar archive");
    refuses_bytes(b"\x1f\x8bnonsense", &limits, "is no intact tar archive");
    let whole = tar(&[(FILE, "a", "", &[7; 4096])]);
    refuses_bytes(&whole[..3000], &limits, "(seen at entry \"a\")");
    let zipped = gzip(&whole);
    refuses_bytes(&zipped[..zipped.len() / 2], &limits, "is no intact");
}

#[test]
fn a_disk_that_is_full_is_the_hosts_fault() {
    let error = UnpackError::Write {
        entry: "a".into(),
        source: std::io::ErrorKind::StorageFull.into(),
    };
    assert!(!error.is_archives_fault());
}

/// Archives of arbitrary kinds, names, targets and data, some of them damaged.
fn archives() -> impl Strategy<Value = Vec<u8>> {
    let text = "(\\.\\./|/|\\./|a/|b|c|outside|l/){0,4}";
    let kinds = prop::sample::select(b"0123457xgLKSV\0".to_vec());
    let item = (kinds, text, text, prop::collection::vec(any::<u8>(), 0..40));
    let items = prop::collection::vec(item, 0..12);
    (
        items,
        any::<bool>(),
        prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    )
        .prop_map(|(items, is_gzip, damage)| {
            let mut bytes = Vec::new();
            for (kind, name, link, data) in &items {
                let item = (
                    EntryType::new(*kind),
                    name.as_str(),
                    link.as_str(),
                    data.as_slice(),
                );
                put(&mut bytes, item, data.len() as u64, 0o7777);
            }
            bytes.resize(bytes.len() + 1024, 0);
            if is_gzip {
                bytes = gzip(&bytes);
            }
            if let Some((at, byte)) = damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        })
}

proptest! {
    #[test]
    fn whatever_the_bytes_nothing_outside_changes(archive in archives()) {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside/a");
        fs::create_dir_all(&inside).unwrap();
        fs::write(dir.path().join("outside"), "as it was").unwrap();
        fs::write(dir.path().join("inside/outside"), "as it was").unwrap();
        let _ = unpack_to(&archive, &Limits::default(), &inside);
        let mut outside = listing(dir.path());
        outside.retain(|line| !line.contains("inside/a/"));
        prop_assert_eq!(outside, ["100644 inside/outside", "100644 outside", "40755 inside", "40755 inside/a"]);
        for file in ["outside", "inside/outside"] {
            let path = dir.path().join(file);
            prop_assert_eq!(fs::read_to_string(&path).unwrap(), "as it was");
            prop_assert_eq!(fs::metadata(&path).unwrap().nlink(), 1);
        }
        // No link in the tree leads out of it: but for /usr, each resolves beneath or nowhere.
        for line in listing(&inside).iter().filter_map(|line| line.strip_prefix("link ")) {
            let (name, target) = line.split_once(" -> ").unwrap();
            if let Ok(real) = inside.join(name).canonicalize() && !target.starts_with("/usr/") {
                prop_assert!(real.starts_with(inside.canonicalize().unwrap()), "{}", line);
            }
        }
    }

    #[test]
    fn noise_is_refused_or_harmless(noise in prop::collection::vec(any::<u8>(), 0..2048)) {
        let dir = tempfile::tempdir().unwrap();
        let _ = unpack_to(&noise, &Limits::default(), dir.path());
    }
}
