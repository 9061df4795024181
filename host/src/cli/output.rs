//! What is shown, and in which form: tables and sentences for people, JSON for programs.

use std::io::{IsTerminal, Write};

use serde::Serialize;

/// Where a command's results go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    is_json: bool,
}

impl Output {
    pub(super) fn new(is_json: bool) -> Self {
        Self { is_json }
    }

    pub(super) fn is_json(self) -> bool {
        self.is_json
    }

    /// Whether a person looks on: progress is shown.
    pub(super) fn is_watched(self) -> bool {
        !self.is_json && std::io::stderr().is_terminal()
    }

    /// A result: as JSON, or as what `text` makes of it.
    pub(super) fn result<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) {
        let shown = if self.is_json {
            serde_json::to_string(value).expect("results are plain values") + "\n"
        } else {
            text(value)
        };
        print(shown.as_bytes());
    }

    /// What goes on, for people only.
    pub(super) fn note(self, text: &str) {
        if !self.is_json {
            eprintln!("{text}");
        }
    }

    pub(super) fn error(self, error: &anyhow::Error) {
        if self.is_json {
            let document = serde_json::json!({ "error": format!("{error:#}") });
            eprintln!("{document}");
        } else {
            eprintln!("opr: {error:#}");
        }
    }
}

/// Writes to standard output. Whoever reads it may have seen enough.
pub(super) fn print(bytes: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    if stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .is_err()
    {
        std::process::exit(0);
    }
}

/// Columns under their titles, as wide as they need.
pub(super) fn table<const N: usize>(titles: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = titles.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths);
        let padded: Vec<_> = padded
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(titles);
    for row in rows {
        text += &line(row.each_ref().map(String::as_str));
    }
    text
}

/// Bytes for people: `1.5 MB`.
pub(super) fn megabytes(bytes: u64) -> String {
    let tenths = bytes / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need() {
        let rows = [
            ["hello".into(), "node-22".into()],
            ["a-longer-name".into(), "x".into()],
        ];
        expect![[r"
            NAME           RUNTIME
            hello          node-22
            a-longer-name  x
        "]]
        .assert_eq(&table(["NAME", "RUNTIME"], &rows));
        assert_eq!(megabytes(1_550_000), "1.5 MB");
    }
}
