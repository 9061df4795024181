//! `opr init` as it is typed, on a machine without a node.

use std::{path::Path, process::Command};

use expect_test::{Expect, expect};

/// What `opr ARGS` in `folder` prints, and its exit code.
#[track_caller]
fn check(folder: &Path, args: &[&str], expected: Expect) {
    let output = Command::new(env!("CARGO_BIN_EXE_opr"))
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap();
    let code = output.status.code().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    expected.assert_eq(&format!(
        "{}exit {code}\n",
        String::from_utf8_lossy(&printed)
    ));
}

#[test]
fn tells_what_it_made_and_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    check(
        dir,
        &["init", "node", "hello"],
        expect![[r#"
        hello has index.js, package.json
        next: opr deploy hello
        exit 0
    "#]],
    );
    assert!(dir.join("hello/index.js").is_file());
    check(
        dir,
        &["init", "php-8.2", "a/older"],
        expect![[r#"
        a/older has index.php
        next: opr deploy a/older --runtime php-8.2
        exit 0
    "#]],
    );
    check(
        dir,
        &["--json", "init", "go", "b"],
        expect![[r#"
        {"folder":"b","runtime":"go-1.24","files":["go.mod","main.go"],"next":"opr deploy b"}
        exit 0
    "#]],
    );
}

#[test]
fn says_why_it_made_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::create_dir_all(dir.join("hello/mine")).unwrap();
    check(
        dir,
        &["init", "node", "hello"],
        expect![[r#"
        opr: hello is not empty
        exit 1
    "#]],
    );
    check(
        dir,
        &["init", "node", "hello world"],
        expect![[r#"
        opr: hello world cannot be a function's folder: function name "hello world" is not valid: it starts with a letter or digit, holds only letters, digits, `.`, `_` and `-`, and is at most 63 characters long
        exit 1
    "#]],
    );
    check(
        dir,
        &["init", "cobol", "a"],
        expect![[r#"
        opr: there is no language "cobol"; this node knows node, python, php, static, ruby, bun, deno, go, rust, java, cpp, swift, kotlin
        exit 3
    "#]],
    );
}
