//! Compares the README's table of environment variables with the code.

use opr_host::config::env;

#[test]
fn the_readme_lists_each_variable_once_in_the_order_of_the_code() {
    let readme = include_str!("../../../README.md");
    let listed: Vec<_> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("OPR_"))
        .collect();
    assert_eq!(listed, env::ALL);
}
