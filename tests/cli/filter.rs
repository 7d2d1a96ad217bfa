//! The subset of SigNoz's filter syntax that the documentation uses: `name = 'value'`, `name != 'value'`,
//! `name IN $variable`, `name IN ('a', 'b')`, `name EXISTS`, their negations, and `AND`.

use std::collections::BTreeMap;

/// Attributes and columns of a span or a log record.
pub(crate) type Fields = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Exists,
    In(Vec<String>),
    /// A dashboard variable matches any value.
    InVariable(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    name: String,
    negated: bool,
    test: Test,
}

/// Conditions that must all hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter(Vec<Condition>);

fn quoted(text: &str) -> Option<String> {
    let value = text.strip_prefix('\'')?.strip_suffix('\'')?;
    (!value.contains('\'')).then(|| value.to_owned())
}

impl Condition {
    fn parse(condition: &str) -> Option<Self> {
        let (name, rest) = condition.trim().split_once(' ')?;
        let (negated, rest) = match rest.strip_prefix("NOT ") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let name = name.to_owned();
        if !name.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == '.') {
            return None;
        }
        let (operator, value) = rest.split_once(' ').unwrap_or((rest, ""));
        match operator {
            "EXISTS" if value.is_empty() => Some(Self { name, negated, test: Test::Exists }),
            "=" => Some(Self { name, negated, test: Test::In(vec![quoted(value)?]) }),
            "!=" if !negated => Some(Self { name, negated: true, test: Test::In(vec![quoted(value)?]) }),
            "IN" => {
                let test = if let Some(variable) = value.strip_prefix('$') {
                    Test::InVariable(variable.to_owned())
                } else {
                    let list = value.strip_prefix('(')?.strip_suffix(')')?;
                    Test::In(list.split(", ").map(quoted).collect::<Option<_>>()?)
                };
                Some(Self { name, negated, test })
            }
            _ => None,
        }
    }

    fn holds(&self, fields: &Fields) -> bool {
        let found = match (&self.test, fields.get(&self.name)) {
            (Test::Exists | Test::InVariable(_), value) => value.is_some(),
            (Test::In(values), value) => value.is_some_and(|value| values.contains(value)),
        };
        found != self.negated
    }
}

impl Filter {
    /// Parses a filter.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        text.split(" AND ").map(Condition::parse).collect::<Option<_>>().map(Self)
    }

    /// The names in it.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|condition| &*condition.name)
    }

    /// The dashboard variables in it.
    pub(crate) fn variables(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|condition| match &condition.test {
            Test::InVariable(variable) => Some(&**variable),
            Test::Exists | Test::In(_) => None,
        })
    }

    /// Whether all conditions hold.
    pub(crate) fn holds(&self, fields: &Fields) -> bool {
        self.0.iter().all(|condition| condition.holds(fields))
    }
}

#[test]
fn signoz_filters_are_evaluated() {
    let fields =
        Fields::from([("name".to_owned(), "hold".to_owned()), ("work_item.id".to_owned(), "7".to_owned())]);
    for (text, holds) in [
        ("name = 'hold'", true),
        ("name = 'sweep'", false),
        ("name != 'sweep'", true),
        ("name = 'hold' AND work_item.id = '8'", false),
        ("work_item.id EXISTS AND callback.code NOT EXISTS", true),
        ("callback.code EXISTS", false),
        ("name IN ('sweep', 'hold')", true),
        ("http.route NOT IN ('/health')", true),
    ] {
        assert_eq!(Filter::parse(text).unwrap().holds(&fields), holds, "{text}");
    }
    for none in ["requestId", "name == 'hold'", "name = hold", "GET /x", "name = 'a' OR name = 'b'", ""] {
        assert_eq!(Filter::parse(none), None, "{none}");
    }
}
