//! The threat model: each threat names tests, and they exist.

use std::fs;
use std::path::Path;

/// Whether a file has a test of this name, by itself or for every deployment.
fn has_test(text: &str, name: &str) -> bool {
    let Some(at) = text.find(&format!("fn {name}(")) else { return false };
    let attribute = text[..at].trim_end().trim_end_matches("async").trim_end();
    let attributed =
        attribute.lines().last().is_some_and(|line| line.contains("test") && line.ends_with(']'));
    attributed || text.matches(name).count() > 1
}

#[test]
fn every_threat_names_an_existing_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let is_threat = |line: &&str| line.matches('|').count() == 4 && !line.starts_with("| threat |");
    let threats: Vec<&str> = text.lines().filter(is_threat).filter(|line| !line.contains("---")).collect();
    assert!(threats.len() > 25, "{}", threats.len());
    for threat in threats {
        let tests = threat.trim_end_matches('|').rsplit_once('|').unwrap().1;
        let names: Vec<&str> = tests.split('`').filter(|word| word.contains("::")).collect();
        assert!(!names.is_empty(), "{threat}");
        for name in names {
            let (path, function) = name.split_once("::").unwrap();
            let source = fs::read_to_string(root.join(path)).unwrap_or_default();
            assert!(has_test(&source, function), "there is no test {name}");
        }
    }
    assert!(!has_test("fn a_test() {}", "a_test"));
}
