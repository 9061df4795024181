use super::*;
use crate::{function::tests::function, id::Digest};

fn name(text: &str) -> FunctionName {
    FunctionName::try_new(text).unwrap()
}

#[tokio::test]
async fn functions_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Store::open(dir.path()).unwrap();
        store.put(function("one")).await.unwrap();
        store.put(function("two")).await.unwrap();
        let mut changed = function("two");
        changed.entrypoint = "other.js".into();
        store.put(changed).await.unwrap();
        assert!(store.remove(&name("one")).await.unwrap().is_some());
        assert!(store.remove(&name("one")).await.unwrap().is_none());
    }
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.list().len(), 1);
    assert_eq!(store.get(&name("two")).unwrap().entrypoint, "other.js");
    assert_eq!(store.get(&name("one")), None);
}

#[test]
fn its_files_are_for_the_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let _store = Store::open(dir.path()).unwrap();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", entry.file_name());
    }
}

#[tokio::test]
async fn a_build_is_recorded_with_its_function_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let id = store.queue_build(&name("hello")).await.unwrap();
    store.start_build(id).await.unwrap();
    let made = Arc::new(function("hello"));
    store
        .succeed_build(id, made.clone(), 7, b"done".to_vec())
        .await
        .unwrap();
    assert_eq!(store.get(&name("hello")), Some(made));

    let failed = store.queue_build(&name("hello")).await.unwrap();
    store
        .fail_build(failed, "no luck".into(), b"log".to_vec())
        .await
        .unwrap();
    let builds = store.builds(Some(&name("hello"))).await.unwrap();
    let states: Vec<_> = builds.iter().map(|build| build.state).collect();
    assert_eq!(states, [BuildState::Failed, BuildState::Succeeded]);
    assert_eq!(builds[0].message.as_deref(), Some("no luck"));
    assert_eq!(builds[1].artifact, Some(Digest::from_sha256([1; 32])));
    assert_eq!(store.build_log(failed).await.unwrap().unwrap(), b"log");
    assert_eq!(store.build_log(99).await.unwrap(), None);
    store.remove(&name("hello")).await.unwrap();
    assert_eq!(store.builds(None).await.unwrap(), []);
}

#[tokio::test]
async fn a_build_that_a_crash_cut_off_has_failed() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Store::open(dir.path()).unwrap();
        store.queue_build(&name("a")).await.unwrap();
    }
    let store = Store::open(dir.path()).unwrap();
    let builds = store.builds(None).await.unwrap();
    assert_eq!(builds[0].state, BuildState::Failed);
    assert_eq!(
        builds[0].message.as_deref(),
        Some("the node stopped during the build")
    );
}

#[tokio::test]
async fn old_builds_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for _ in 0..30 {
        let id = store.queue_build(&name("a")).await.unwrap();
        store.fail_build(id, String::new(), vec![]).await.unwrap();
    }
    assert_eq!(store.builds(None).await.unwrap().len(), 10);
}

#[track_caller]
fn refuses(dir: &Path, expected: &str) {
    let before = fs::read(dir.join(FILE)).unwrap();
    let error = Store::open(dir).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
    assert_eq!(fs::read(dir.join(FILE)).unwrap(), before, "overwritten");
}

#[test]
fn what_it_cannot_understand_is_an_error_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE);
    fs::write(&file, vec![b'x'; 8192]).unwrap();
    refuses(dir.path(), "is damaged: file is not a database");

    fs::remove_file(&file).unwrap();
    let other = Connection::open(&file).unwrap();
    other.execute_batch("CREATE TABLE t (a)").unwrap();
    drop(other);
    refuses(dir.path(), "is no database of this program");

    fs::remove_file(&file).unwrap();
    drop(Store::open(dir.path()).unwrap());
    let ours = Connection::open(&file).unwrap();
    ours.pragma_update(None, "user_version", 99).unwrap();
    drop(ours);
    refuses(
        dir.path(),
        "has version 99, but this program knows 1 at most",
    );
}

#[test]
fn a_document_that_is_no_function_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    let ours = Connection::open(dir.path().join(FILE)).unwrap();
    ours.execute("INSERT INTO functions VALUES ('f', '{}', 0)", [])
        .unwrap();
    drop(ours);
    let error = Store::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("is damaged: function f"), "{error}");
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Store::open(dir.path()).unwrap();
    let error = Store::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("is in use by another process"), "{error}");
}

#[tokio::test]
async fn a_write_that_fails_changes_nothing_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.put(function("kept")).await.unwrap();
    let broken = store.write("fail", |_, functions| -> rusqlite::Result<()> {
        functions.clear();
        Err(rusqlite::Error::InvalidQuery)
    });
    assert!(broken.await.is_err());
    assert!(store.get(&name("kept")).is_some());
}
