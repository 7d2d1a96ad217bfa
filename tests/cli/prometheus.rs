//! The alert rules for Prometheus: the same alerts as SigNoz's, on metrics that `/metrics` shows.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use callback_ingress::telemetry::names::METRICS;
use serde_json::Value;

use crate::program::{Ran, path};
use crate::service::{Service, eventually};
use crate::wire::call;

const RULES: &str = include_str!("../../config/prometheus/alerts.yaml");
const SIGNOZ: &str = include_str!("../../config/signoz/alerts.json");
const RULES_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/prometheus/alerts.yaml");

/// The thresholds of each alert by severity, as `> 5`.
type Thresholds = BTreeMap<String, BTreeMap<String, String>>;

fn rules() -> Vec<Value> {
    let file: Value = serde_saphyr::from_str(RULES).unwrap();
    file["groups"][0]["rules"].as_array().unwrap().clone()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn thresholds_of_prometheus() -> Thresholds {
    let mut thresholds = Thresholds::new();
    for rule in rules() {
        let expression = text(&rule["expr"]);
        let at = expression.rfind(['<', '>']).unwrap();
        let tiers = thresholds.entry(text(&rule["alert"]).to_owned()).or_default();
        let severity = text(&rule["labels"]["severity"]).to_owned();
        assert!(tiers.insert(severity, expression[at..].to_owned()).is_none(), "{rule}");
    }
    thresholds
}

/// `callback-ingress: a bug` is `CallbackIngressABug` for Prometheus.
fn thresholds_of_signoz() -> Thresholds {
    let rules: Vec<Value> = serde_json::from_str(SIGNOZ).unwrap();
    let camel_case = |words: &str| {
        let word = |word: &str| word[..1].to_uppercase() + &word[1..];
        words.replace(['-', ':'], " ").split_whitespace().map(word).collect::<String>()
    };
    let tier = |tier: &Value| {
        let sign = if tier["op"] == "above" { '>' } else { '<' };
        (text(&tier["name"]).to_owned(), format!("{sign} {}", tier["target"]))
    };
    let tiers = |rule: &Value| {
        let tiers = rule["condition"]["thresholds"]["spec"].as_array().unwrap();
        tiers.iter().map(tier).collect()
    };
    rules.iter().map(|rule| (camel_case(text(&rule["alert"])), tiers(rule))).collect()
}

#[test]
fn prometheus_has_the_alerts_of_signoz() {
    assert_eq!(thresholds_of_prometheus(), thresholds_of_signoz());
}

/// The metrics in an expression: words with a known beginning.
fn metrics(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| {
        let begins = ["callback_ingress_", "http_server_"].iter().any(|prefix| word.starts_with(prefix));
        begins && *word != "callback_ingress_signal"
    })
}

/// Whether a metric of the service has this name for Prometheus.
fn is_exported(name: &str) -> bool {
    METRICS.iter().any(|metric| {
        let stem = metric.name.replace('.', "_");
        name.strip_prefix(&stem).is_some_and(|suffix| {
            ["", "_total", "_info", "_seconds_bucket", "_seconds_count"].contains(&suffix)
        })
    })
}

#[test]
fn prometheus_alerts_use_exported_metrics() {
    for rule in rules() {
        let expression = text(&rule["expr"]);
        assert!(metrics(expression).count() > 0, "{rule}");
        for metric in metrics(expression) {
            assert!(is_exported(metric), "{metric} in {rule}");
        }
        for annotation in ["summary", "description", "runbook_url"] {
            assert!(!text(&rule["annotations"][annotation]).is_empty(), "{rule}");
        }
    }
}

fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool").env_clear().env("PATH", path()).args(arguments).output();
    let ran = Ran::from(output.expect("promtool, which tests/run installs, is there"));
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[test]
fn promtool_accepts_the_rules() {
    promtool(&["check", "rules", RULES_FILE]);
}

/// Cases of `promtool test rules`: series, and the alerts that fire with them.
const CASES: &str = r#"
evaluation_interval: 1m
tests:
  - name: all is well
    interval: 1m
    input_series: &well
      - series: callback_ingress_build_info{instance="a"}
        values: 1x60
      - series: callback_ingress_store_reachable{instance="a"}
        values: 1x60
      - series: callback_ingress_work_item_issued_total{work_item_kind="tool"}
        values: 0+60x60
      - series: callback_ingress_result_turnaround_seconds_count{work_item_kind="tool"}
        values: 0+59x60
      - series: callback_ingress_panic_total
        values: 0x60
    alert_rule_test:
      - {alertname: CallbackIngressTheStoreIsUnreachable, eval_time: 50m}
      - {alertname: CallbackIngressCallbacksDoNotArrive, eval_time: 50m}
      - {alertname: CallbackIngressABug, eval_time: 50m}
  - name: nothing is scraped
    interval: 1m
    promql_expr_test:
      - expr: count(ALERTS{alertname="CallbackIngressTheStoreIsUnreachable",alertstate="firing"})
        eval_time: 10m
        exp_samples: [{value: 1}]
  - name: work is issued and no result ever came, and one instance does not reach the store
    interval: 1m
    input_series:
      - series: callback_ingress_build_info{instance="a"}
        values: 1x60
      - series: callback_ingress_store_reachable{instance="a"}
        values: 1x60
      - series: callback_ingress_store_reachable{instance="b"}
        values: 0x60
      - series: callback_ingress_work_item_issued_total{work_item_kind="tool"}
        values: 0+60x60
      - series: callback_ingress_panic_total
        values: 0x48 1x20
    promql_expr_test:
      - expr: count by (alertname, instance) (ALERTS{alertstate="firing"})
        eval_time: 50m
        exp_samples:
          - {labels: '{alertname="CallbackIngressTheStoreIsUnreachable", instance="b"}', value: 1}
          - {labels: '{alertname="CallbackIngressCallbacksDoNotArrive"}', value: 1}
          - {labels: '{alertname="CallbackIngressABug"}', value: 1}
  - name: a request is answered 500 without a panic
    interval: 1m
    input_series:
      - series: callback_ingress_panic_total
        values: 0x60
      - series: callback_ingress_request_refused_total{callback_code="INTERNAL"}
        values: 0x48 1x20
      - series: callback_ingress_request_refused_total{callback_code="NOT_FOUND"}
        values: 0+9x60
    promql_expr_test:
      - expr: count(ALERTS{alertname="CallbackIngressABug",alertstate="firing"})
        eval_time: 40m
        exp_samples: []
      - expr: count(ALERTS{alertname="CallbackIngressABug",alertstate="firing"})
        eval_time: 50m
        exp_samples: [{value: 1}]
"#;

#[test]
fn prometheus_alerts_fire_when_they_should() {
    let directory = tempfile::tempdir().unwrap();
    let cases = directory.path().join("cases.yaml");
    std::fs::write(&cases, format!("rule_files: [{RULES_FILE:?}]\n{}", CASES.replace(" &well", ""))).unwrap();
    promtool(&["test", "rules", cases.to_str().unwrap()]);
}

#[test]
fn metrics_show_the_build_and_the_process() {
    let service = Service::start(&[]);
    let metrics = || call(&service.platform, "GET /metrics", &[], "").body;
    let value = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
    };
    eventually("the store is checked", || metrics().contains("callback_ingress_store_reachable"));
    let shown = metrics();
    let build = concat!("callback_ingress_build_info{service_version=\"", env!("CARGO_PKG_VERSION"), "\"");
    assert!(shown.contains(build), "{shown}");
    assert!(!shown.contains("callback_ingress_build{"), "{shown}");
    for name in ["process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"] {
        assert!(value(&shown, name).is_some_and(|value| value > 0.0), "{name}: {shown}");
    }
    assert!(value(&shown, "process_cpu_seconds_total").is_some(), "{shown}");
    let families = shown.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names: Vec<_> = families.filter_map(|family| family.split(' ').next()).collect();
    let distinct: BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len(), "{names:?}");
}
