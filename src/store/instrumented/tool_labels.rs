//! Bounds the number of tool and provider names that become values of a metric attribute.

use std::sync::{PoisonError, RwLock};

use rustc_hash::FxHashSet;

use crate::domain::ids::ToolName;

/// Maximum number of names. Every name multiplies the series of its metrics.
const MAX_NAMES: usize = 100;

/// The value for all names beyond [`MAX_NAMES`].
const OTHER: &str = "other";

/// The names that are used as values: the first [`MAX_NAMES`] that the process has seen.
#[derive(Debug, Default)]
pub(super) struct ToolLabels(RwLock<FxHashSet<ToolName>>);

impl ToolLabels {
    /// The value for a name: the name itself, or `other` if there are already [`MAX_NAMES`]. Empty without a name.
    pub(super) fn label<'a>(&self, name: Option<&'a ToolName>) -> &'a str {
        let Some(name) = name else { return "" };
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if known.contains(name) {
            return name.as_str();
        }
        if known.len() >= MAX_NAMES {
            return OTHER;
        }
        drop(known);
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have added names since the first check.
        if known.len() >= MAX_NAMES && !known.contains(name) {
            return OTHER;
        }
        known.insert(name.clone());
        name.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_over_the_maximum_become_other() {
        let labels = ToolLabels::default();
        assert_eq!(labels.label(None), "");
        let name = |number: usize| ToolName::parse(&format!("tool-{number}")).unwrap();
        for number in (0..MAX_NAMES).chain(0..MAX_NAMES) {
            assert_eq!(labels.label(Some(&name(number))), format!("tool-{number}"));
        }
        assert_eq!(labels.label(Some(&name(MAX_NAMES))), OTHER);
        assert_eq!(labels.label(Some(&name(7))), "tool-7", "a known name stays");
    }
}
