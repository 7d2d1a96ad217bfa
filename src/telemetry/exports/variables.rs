//! Validates OpenTelemetry's variables. The SDK ignores most invalid values silently, and accepts queue sizes that
//! exhaust the memory. Error messages do not repeat values, which can contain credentials.

use url::Url;

use super::ExportError;

/// Whether a value is valid.
type Validator = fn(&str) -> bool;

fn is_endpoint(value: &str) -> bool {
    Url::parse(value).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

fn is_duration(value: &str) -> bool {
    value.parse::<u64>().is_ok_and(|number| (1..=86_400_000).contains(&number))
}

/// The upper bound matters: the SDK allocates a queue at its full size.
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

/// Variables `OTEL_EXPORTER_OTLP_<NAME>` and `OTEL_EXPORTER_OTLP_<SIGNAL>_<NAME>`: name, validator, supported values.
const EXPORTER_VARIABLES: &[(&str, Validator, &str)] = &[
    ("ENDPOINT", is_endpoint, "an http:// or https:// URL"),
    ("TIMEOUT", is_duration, "1 to 86400000 milliseconds"),
    ("COMPRESSION", is_compression, "gzip or none"),
    ("HEADERS", is_headers, "name=value pairs, separated by commas"),
    ("CERTIFICATE", |_| false, "unset: only the built-in certificate authorities are supported"),
    ("CLIENT_KEY", |_| false, "unset: client certificates are not supported"),
    ("CLIENT_CERTIFICATE", |_| false, "unset: client certificates are not supported"),
];

/// All other variables: name, validator, supported values.
const OTHER_VARIABLES: &[(&str, Validator, &str)] = &[
    (
        "OTEL_TRACES_SAMPLER",
        is_sampler,
        "always_on, always_off or traceidratio, optionally with the prefix parentbased_",
    ),
    ("OTEL_TRACES_SAMPLER_ARG", is_ratio, "0 to 1"),
    ("OTEL_BSP_SCHEDULE_DELAY", is_duration, "1 to 86400000 milliseconds"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", is_queue_size, "1 to 100000"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", is_queue_size, "1 to 100000"),
    ("OTEL_BLRP_SCHEDULE_DELAY", is_duration, "1 to 86400000 milliseconds"),
    ("OTEL_BLRP_MAX_QUEUE_SIZE", is_queue_size, "1 to 100000"),
    ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", is_queue_size, "1 to 100000"),
    ("OTEL_METRIC_EXPORT_INTERVAL", is_duration, "1 to 86400000 milliseconds"),
];

/// Validates all variables; reports the first invalid one.
pub(super) fn check(variable: impl Fn(&str) -> Option<String>) -> Result<(), ExportError> {
    let validate = |name: String, is_valid: Validator, allowed: &'static str| match variable(&name) {
        Some(value) if !is_valid(&value) => Err(ExportError::Variable { name, allowed }),
        Some(_) | None => Ok(()),
    };
    for &(name, is_valid, allowed) in EXPORTER_VARIABLES {
        for signal in ["", "TRACES_", "METRICS_", "LOGS_"] {
            validate(format!("OTEL_EXPORTER_OTLP_{signal}{name}"), is_valid, allowed)?;
        }
    }
    OTHER_VARIABLES
        .iter()
        .try_for_each(|&(name, is_valid, allowed)| validate(name.to_owned(), is_valid, allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_value_is_reported_by_name_and_not_shown() {
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
