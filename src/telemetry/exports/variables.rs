//! OpenTelemetry's variables whose wrong values the SDK would pass over without a word, or take at any cost. Values are
//! never repeated: they may hold credentials.

use url::Url;

use super::ExportError;

/// Whether a value will do.
type Test = fn(&str) -> bool;

fn is_collector(value: &str) -> bool {
    Url::parse(value).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

fn is_positive(value: &str) -> bool {
    value.parse::<u64>().is_ok_and(|number| (1..=86_400_000).contains(&number))
}

/// Queues are set aside whole.
fn is_queue_size(value: &str) -> bool {
    value.parse::<u32>().is_ok_and(|number| (1..=100_000).contains(&number))
}

fn is_sampler(value: &str) -> bool {
    let name = value.strip_prefix("parentbased_").unwrap_or(value);
    matches!(name, "always_on" | "always_off" | "traceidratio")
}

fn is_ratio(value: &str) -> bool {
    value.parse::<f64>().is_ok_and(|ratio| (0.0..=1.0).contains(&ratio))
}

fn is_compression(value: &str) -> bool {
    matches!(value, "gzip" | "none")
}

fn is_headers(value: &str) -> bool {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    value.split(',').all(|pair| pair.split_once('=').is_some_and(|(name, _)| is_name(name.trim())))
}

/// What may follow `OTEL_EXPORTER_OTLP_`, with or without a signal between.
const OF_AN_EXPORTER: &[(&str, Test, &str)] = &[
    ("ENDPOINT", is_collector, "an http:// or https:// URL"),
    ("TIMEOUT", is_positive, "1 to 86400000 milliseconds"),
    ("COMPRESSION", is_compression, "gzip or none"),
    ("HEADERS", is_headers, "name=value, and more of them after commas"),
    ("CERTIFICATE", |_| false, "left out: the certificate authorities are built in"),
    ("CLIENT_KEY", |_| false, "left out: no client certificate is shown"),
    ("CLIENT_CERTIFICATE", |_| false, "left out: no client certificate is shown"),
];

const OTHERS: &[(&str, Test, &str)] = &[
    (
        "OTEL_TRACES_SAMPLER",
        is_sampler,
        "always_on, always_off, traceidratio, or one of them after parentbased_",
    ),
    ("OTEL_TRACES_SAMPLER_ARG", is_ratio, "0 to 1"),
    ("OTEL_BSP_SCHEDULE_DELAY", is_positive, "1 to 86400000 milliseconds"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", is_queue_size, "1 to 100000"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", is_queue_size, "1 to 100000"),
    ("OTEL_BLRP_SCHEDULE_DELAY", is_positive, "1 to 86400000 milliseconds"),
    ("OTEL_BLRP_MAX_QUEUE_SIZE", is_queue_size, "1 to 100000"),
    ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", is_queue_size, "1 to 100000"),
    ("OTEL_METRIC_EXPORT_INTERVAL", is_positive, "1 to 86400000 milliseconds"),
];

/// Refuses the first that is wrong, by its name.
pub(super) fn check(variable: impl Fn(&str) -> Option<String>) -> Result<(), ExportError> {
    let test = |name: String, test: Test, allowed: &'static str| match variable(&name) {
        Some(value) if !test(&value) => Err(ExportError::Variable { name, allowed }),
        Some(_) | None => Ok(()),
    };
    for &(what, fits, allowed) in OF_AN_EXPORTER {
        for signal in ["", "TRACES_", "METRICS_", "LOGS_"] {
            test(format!("OTEL_EXPORTER_OTLP_{signal}{what}"), fits, allowed)?;
        }
    }
    OTHERS.iter().try_for_each(|&(name, fits, allowed)| test(name.to_owned(), fits, allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_passed_over_is_refused_by_name_and_without_its_value() {
        for (name, good, bad) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318", "collector:4318/?key=hunter2"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://[::1]:4318/v1/traces", "hunter2"),
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://user:hunter2@collector", "unix:///hunter2"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10000", "hunter2"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", "hunter2"),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "signoz-ingestion-key=hunter2, a=b",
                "signoz-ingestion-key: hunter2",
            ),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio", "hunter2"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.1", "10%"),
            ("OTEL_TRACES_SAMPLER_ARG", "0", "NaN"),
            ("OTEL_BSP_SCHEDULE_DELAY", "1", "0"),
            ("OTEL_BLRP_MAX_QUEUE_SIZE", "2048", "18446744073709551615"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "60000", "-1"),
        ] {
            let with = |value: &'static str| check(|asked| (asked == name).then(|| value.to_owned()));
            assert!(with(good).is_ok(), "{name}={good}");
            let error = with(bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}: must be ")) && !error.contains("hunter2"), "{error}");
        }
        assert!(
            check(|name| (name == "OTEL_EXPORTER_OTLP_CERTIFICATE").then(|| "ca.pem".to_owned())).is_err()
        );
    }
}
