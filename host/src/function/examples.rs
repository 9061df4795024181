//! The example of each language, as `runtimes/<language>/example` was at build time.

/// Files by their path below the function's folder.
pub type Files = &'static [(&'static str, &'static [u8])];

const EMBEDDED: &[(&str, Files)] = include!(concat!(env!("OUT_DIR"), "/examples.rs"));

/// The example of a family of runtimes, as in `node`.
pub fn example(family: &str) -> Option<Files> {
    let found = EMBEDDED.iter().find(|(language, _)| *language == family);
    found.map(|(_, files)| *files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::function::Catalog;

    #[test]
    fn each_language_of_the_catalogue_has_one_with_its_entrypoint() {
        for runtime in Catalog::load(None).unwrap().list() {
            let files = example(&runtime.family).unwrap_or_default();
            let has_entrypoint = files.iter().any(|(name, _)| *name == runtime.entrypoint);
            assert!(has_entrypoint, "{}: {:?}", runtime.name, names(files));
        }
        assert_eq!(example("cobol"), None);
    }

    fn names(files: Files) -> Vec<&'static str> {
        files.iter().map(|(name, _)| *name).collect()
    }
}
