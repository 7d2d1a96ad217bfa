//! The dashboards, alerts and the collector's configuration: they parse, are consistent, and use only names that the
//! service exports.

use std::collections::{BTreeMap, BTreeSet};

use callback_ingress::telemetry::names::{self, ATTRIBUTES, METRICS, Metric, RESOURCE};
use serde_json::Value;

use crate::filter::Filter;
use crate::readme::anchors;

const RUNBOOK: &str = include_str!("../../docs/runbook.md");
const TABLES: &str = include_str!("../../config/signoz/README.md");
const DASHBOARD: &str = include_str!("../../config/signoz/dashboard.json");
const ALERTS: &str = include_str!("../../config/signoz/alerts.json");
pub(crate) const COLLECTOR: &str = include_str!("../../config/otel-collector.yaml");

fn dashboard() -> Value {
    serde_json::from_str(DASHBOARD).unwrap()
}

fn alerts() -> Vec<Value> {
    serde_json::from_str(ALERTS).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn is_in(table: &[(&str, &str)], name: &str) -> bool {
    table.iter().any(|(known, _)| *known == name)
}

/// All builder queries within a value.
fn queries(value: &Value) -> Vec<&Value> {
    match value {
        Value::Object(members) if members.contains_key("aggregations") => vec![value],
        Value::Object(members) => members.values().flat_map(queries).collect(),
        Value::Array(items) => items.iter().flat_map(queries).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

/// The exported metric behind a SigNoz name. SigNoz splits histograms into several and keeps dots.
fn stored(name: &str) -> (Metric, &str) {
    let found = METRICS.iter().find_map(|metric| {
        let suffix = name.strip_prefix(metric.name)?;
        let suffixes: &[&str] = if metric.instrument == "histogram" {
            &[".bucket", ".count", ".sum", ".min", ".max"]
        } else {
            &[""]
        };
        suffixes.contains(&suffix).then_some((*metric, suffix))
    });
    found.unwrap_or_else(|| panic!("SigNoz gets no {name} from us"))
}

/// A query's metric exists, has the named attributes, and its aggregation fits its kind.
fn check(query: &Value) {
    assert_eq!(query["signal"], "metrics", "{query}");
    let [aggregation] = list(&query["aggregations"]) else { panic!("not one aggregation: {query}") };
    let (metric, suffix) = stored(string(&aggregation["metricName"]));
    let time = aggregation["timeAggregation"].as_str().unwrap_or_default();
    let space = string(&aggregation["spaceAggregation"]);
    let fits = match (metric.instrument, suffix) {
        ("histogram", ".bucket") => time.is_empty() && matches!(space, "p50" | "p75" | "p90" | "p95" | "p99"),
        ("histogram" | "counter", _) => matches!(time, "rate" | "increase") && space == "sum",
        // Every instance reports the same store totals, so a sum would count them several times.
        ("gauge", _) if metric.meaning.ends_with("in the whole store") => {
            matches!(time, "latest" | "min" | "max") && space == "max"
        }
        ("gauge" | "up-down counter", _) => matches!(time, "latest" | "avg" | "min" | "max"),
        other => panic!("{other:?} of {query}"),
    };
    assert!(fits, "{time} and {space} do not suit a {}: {query}", metric.instrument);

    let filter = string(&query["filter"]["expression"]);
    let filter = Filter::parse(filter).unwrap_or_else(|| panic!("no filter: {filter}"));
    let grouped: Vec<_> = list(&query["groupBy"]).iter().map(|key| string(&key["name"])).collect();
    for name in filter.names().chain(grouped.iter().copied()) {
        let known = metric.attributes.contains(&name) || is_in(RESOURCE, name);
        assert!(known, "{} has no {name}: {query}", metric.name);
    }
    for part in query["legend"].as_str().unwrap_or_default().split("{{").skip(1) {
        let name = part.split_once("}}").unwrap().0;
        assert!(grouped.contains(&name), "the legend has {name}, by which nothing is grouped: {query}");
    }
}

/// Queries of a panel or rule have unique names, formulas refer to them, and at least one is shown.
fn fit_together(composite: &[Value]) {
    let specs: Vec<_> = composite.iter().map(|query| &query["spec"]).collect();
    let names: BTreeSet<_> = specs.iter().map(|spec| string(&spec["name"])).collect();
    assert_eq!(names.len(), specs.len(), "{composite:?}");
    assert!(specs.iter().any(|spec| spec["disabled"] != true), "{composite:?}");
    for formula in composite.iter().filter(|query| query["type"] == "builder_formula") {
        let expression = string(&formula["spec"]["expression"]);
        let of = expression
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| word.starts_with(char::is_alphabetic));
        for name in of {
            assert!(names.contains(name), "{expression}");
        }
    }
}

#[test]
fn dashboard_uses_exported_names() {
    let dashboard = dashboard();
    assert_eq!(dashboard["schemaVersion"], "v6");
    let spec = &dashboard["spec"];
    let variables: BTreeSet<_> =
        list(&spec["variables"]).iter().map(|variable| string(&variable["spec"]["name"])).collect();
    assert_eq!(variables, BTreeSet::from([names::DEPLOYMENT_ENVIRONMENT_OLD, names::SERVICE_NAME]));

    let panels = spec["panels"].as_object().unwrap();
    let mut shown = BTreeSet::new();
    for (id, panel) in panels {
        let [query] = list(&panel["spec"]["queries"]) else { panic!("{id}: not one query") };
        let plugin = &query["spec"]["plugin"];
        if plugin["kind"] == "signoz/CompositeQuery" {
            fit_together(list(&plugin["spec"]["queries"]));
        }
        for query in queries(plugin) {
            check(query);
            let filter = Filter::parse(string(&query["filter"]["expression"])).unwrap();
            assert_eq!(filter.variables().collect::<BTreeSet<_>>(), variables, "{id}");
            shown.insert(stored(string(&query["aggregations"][0]["metricName"])).0.name);
        }
    }
    let known: BTreeSet<_> = METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(shown, known, "every metric is shown");

    let mut placed = Vec::new();
    for section in list(&spec["layouts"]) {
        let mut cells = BTreeSet::new();
        for item in list(&section["spec"]["items"]) {
            placed.push(string(&item["content"]["$ref"]).strip_prefix("#/spec/panels/").unwrap().to_owned());
            let at = |name: &str| item[name].as_u64().unwrap();
            assert!(at("x") + at("width") <= 12, "{item}");
            for x in at("x")..at("x") + at("width") {
                for y in at("y")..at("y") + at("height") {
                    assert!(cells.insert((x, y)), "{item} lies on another");
                }
            }
        }
    }
    placed.sort();
    assert_eq!(placed, panels.keys().cloned().collect::<Vec<_>>(), "every panel is placed once");
}

/// A summary as SigNoz shows it: with the value in its unit. It contains no placeholder, and no unit twice.
fn rendered(name: &str, summary: &str, condition: &Value) {
    let value = match condition["compositeQuery"]["unit"].as_str() {
        Some("percent") => "12.5%",
        Some("s") => "0.3 s",
        Some(other) => panic!("{name}: {other}"),
        None => "42",
    };
    let mut text = summary.replace("{{$value}}", value);
    while let Some((before, after)) = text.clone().split_once("{{$") {
        text = format!("{before}label{}", after.split_once("}}").unwrap().1);
    }
    assert!(!text.contains("{{"), "{name}: {text}");
    for twice in ["% %", "%%", "s s ", " s s", "percent"] {
        assert!(!format!("{text} ").contains(twice), "{name}: {text}");
    }
}

#[test]
fn alerts_use_exported_names_and_say_what_to_do() {
    let anchors = anchors(RUNBOOK);
    let mut rules = BTreeMap::new();
    for rule in alerts() {
        let name = string(&rule["alert"]).to_owned();
        let condition = &rule["condition"];
        let all = list(&condition["compositeQuery"]["queries"]);
        fit_together(all);
        queries(&rule).into_iter().for_each(check);
        let selected = all.iter().find(|query| query["spec"]["name"] == condition["selectedQueryName"]);
        assert!(selected.is_some_and(|query| query["spec"]["disabled"] != true), "{name}");
        let tiers: Vec<_> = list(&condition["thresholds"]["spec"])
            .iter()
            .map(|tier| string(&tier["name"]).to_owned())
            .collect();
        assert_eq!(rule["labels"]["severity"], tiers[0], "{name}");

        let annotations = &rule["annotations"];
        for text in ["summary", "description"] {
            let text = string(&annotations[text]);
            assert!(!text.is_empty(), "{name}");
            for part in text.split("{{$").skip(1) {
                let label = part.split_once("}}").unwrap().0;
                let grouped = queries(&rule).iter().any(|query| query["groupBy"].to_string().contains(label));
                assert!(matches!(label, "value" | "threshold") || grouped, "{name}: {label}");
            }
        }
        rendered(&name, string(&annotations["summary"]), condition);
        let runbook = string(&annotations["runbook"]);
        let found =
            runbook.strip_prefix("RUNBOOK_URL#").is_some_and(|at| anchors.iter().any(|known| known == at));
        assert!(found, "{name}: {runbook} leads nowhere");
        assert!(rules.insert(name.clone(), rule).is_none(), "{name} is there twice");
    }
    assert_eq!(rules.len(), 10);
}

#[test]
fn collector_example_is_consistent() {
    let config: Value = serde_saphyr::from_str(COLLECTOR).unwrap();
    let mut used = BTreeSet::new();
    for (name, pipeline) in config["service"]["pipelines"].as_object().unwrap() {
        for kind in ["receivers", "processors", "exporters"] {
            for component in list(&pipeline[kind]) {
                assert!(config[kind][string(component)].is_object(), "{name}: no {component} in {kind}");
                used.insert((kind, string(component).to_owned()));
            }
        }
        // The memory limiter is first and the batch processor last.
        let processors = list(&pipeline["processors"]);
        assert_eq!(processors.first().unwrap(), "memory_limiter", "{name}");
        assert_eq!(processors.last().unwrap(), "batch", "{name}");
    }
    for kind in ["receivers", "processors", "exporters"] {
        for component in config[kind].as_object().unwrap().keys() {
            assert!(used.contains(&(kind, component.clone())), "nothing uses {component}");
        }
    }

    for policy in list(&config["processors"]["tail_sampling"]["policies"]) {
        let (name, kind) = (string(&policy["name"]), string(&policy["type"]));
        assert!(policy[kind].is_object(), "{name} has no settings of its type, {kind}");
    }
    for attribute in COLLECTOR.split("attributes[\"").skip(1) {
        let name = attribute.split_once('"').unwrap().0;
        assert!(is_in(ATTRIBUTES, name), "no span has {name}");
    }

    // Addresses and secrets are environment variables.
    for exporter in config["exporters"].as_object().unwrap().values() {
        assert!(string(&exporter["endpoint"]).starts_with("${env:"), "{exporter}");
        for header in exporter["headers"].as_object().unwrap().values() {
            assert!(string(header).starts_with("${env:"), "{header}");
        }
    }
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

fn table(head: &str, rows: impl Iterator<Item = Vec<String>>) -> String {
    let columns = head.split(" | ").count();
    let rule = format!("|{}", "---|".repeat(columns));
    let rows = rows.map(|cells| format!("| {} |", cells.join(" | ")));
    [format!("| {head} |"), rule].into_iter().chain(rows).collect::<Vec<_>>().join("\n")
}

#[test]
fn documented_names_match_the_code() {
    let named = |table: &'static [(&str, &str)]| {
        table.iter().map(|(name, meaning)| vec![code(name), (*meaning).to_owned()])
    };
    let metrics = METRICS.iter().map(|metric| {
        let attributes: Vec<_> = metric.attributes.iter().map(|name| code(name)).collect();
        vec![
            code(metric.name),
            metric.instrument.to_owned(),
            code(metric.unit),
            metric.meaning.to_owned(),
            attributes.join(", "),
        ]
    });
    for expected in [
        table("resource attribute | what it is", named(RESOURCE)),
        table("attribute | what it is", named(ATTRIBUTES)),
        table("metric | instrument | unit | what it measures | attributes", metrics),
    ] {
        assert!(
            TABLES.contains(&expected),
            "config/signoz/README.md does not have this table:\n\n{expected}\n"
        );
    }
}
