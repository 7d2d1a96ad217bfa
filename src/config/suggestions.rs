//! "Did you mean": the known name that is nearest to an unknown one.

use strsim::damerau_levenshtein;
use toml::{Table, Value};

use super::VARIABLE_PREFIX;

/// The nearest candidate by edit distance. `None` if the distance is greater than `changes`.
fn within<'a>(changes: usize, name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distances = candidates.map(|candidate| (damerau_levenshtein(name, candidate), candidate));
    let (distance, candidate) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= changes).then_some(candidate)
}

/// The nearest candidate. `None` if more than 40 % of the characters would have to change.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    within(name.len() * 2 / 5, name, candidates)
}

/// All settings as `section.key`.
fn settings(defaults: &Table) -> Vec<String> {
    let names = |(section, settings): (&String, &Value)| {
        let names = settings.as_table().into_iter().flat_map(Table::keys);
        names.map(|name| format!("{section}.{name}")).collect::<Vec<_>>()
    };
    defaults.iter().flat_map(names).collect()
}

/// The setting that an unknown key may mean. For a key without a dot, it can also be a section.
pub(super) fn key(unknown: &str, defaults: &Table) -> Option<String> {
    let known = settings(defaults);
    let name = unknown.rsplit('.').next()?;
    let mut elsewhere = known.iter().filter(|known| known.split('.').next_back() == Some(name));
    if let (Some(only), None) = (elsewhere.next(), elsewhere.next()) {
        return Some(only.clone());
    }
    let nearest = if unknown.contains('.') {
        within(name.len() * 2 / 5, unknown, known.iter().map(String::as_str))
    } else {
        nearest(unknown, defaults.keys().map(String::as_str))
    };
    nearest.map(str::to_owned)
}

/// The variable that an unknown one may mean.
pub(super) fn variable(unknown: &str, defaults: &Table) -> Option<String> {
    // Compared with single underscores, because the number of underscores is a common error.
    let single = |name: &str| name.replace("__", "_");
    let short_prefix = single(VARIABLE_PREFIX);
    let unknown = single(unknown);
    let name = unknown.strip_prefix(short_prefix.as_str())?;
    let variables: Vec<_> =
        settings(defaults).iter().map(|key| key.replace('.', "__").to_ascii_uppercase()).collect();
    let singles: Vec<_> = variables.iter().map(|variable| single(variable)).collect();
    let nearest = within(name.len() / 4, name, singles.iter().map(String::as_str))?;
    let at = singles.iter().position(|variable| variable == nearest)?;
    Some(format!("{VARIABLE_PREFIX}{}", variables[at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Table {
        crate::config::DEFAULTS.parse().unwrap()
    }

    #[test]
    fn near_key_is_suggested() {
        for (unknown, meant) in [
            ("store.uri", Some("store.url")),
            ("token.key", Some("token.keys")),
            ("gate.timeout_ms", Some("gate.max_timeout_ms")),
            ("store.max_body_bytes", Some("http.max_body_bytes")),
            ("public_addr", Some("http.public_addr")),
            ("htpp", Some("http")),
            ("http.port", None),
            ("store.port", None),
            ("x", None),
        ] {
            assert_eq!(key(unknown, &defaults()).as_deref(), meant, "{unknown}");
        }
    }

    #[test]
    fn near_variable_is_suggested() {
        let meant = Some("CALLBACK_INGRESS__HTTP__PUBLIC_ADDR".to_owned());
        for unknown in [
            "CALLBACK_INGRESS_HTTP_PUBLIC_ADDR",
            "CALLBACK_INGRESS__HTTP_PUBLIC_ADDR",
            "CALLBACK_INGRESS_HTTP__PUBLIC_ADDRESS",
        ] {
            assert_eq!(variable(unknown, &defaults()), meant, "{unknown}");
        }
        assert_eq!(variable("CALLBACK_INGRESS__HTTP__PORT", &defaults()), None);
    }
}
