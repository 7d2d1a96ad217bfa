//! A look at a JSON text without changing a byte of it: is it one, how deep, what are its top-level members.
//!
//! `serde_json` checks the grammar; this module adds what it leaves open when a value is passed on
//! unparsed: depth, and escapes that are half of a surrogate pair.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde_json::value::RawValue;
use thiserror::Error;

/// Deepest nesting of arrays and objects that is taken.
pub const MAX_DEPTH: usize = 128;

/// Why bytes are not a JSON text that can be passed on.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    /// Not UTF-8.
    #[error("the body is not UTF-8 (first bad byte at offset {0})")]
    NotUtf8(usize),
    /// Not a JSON text.
    #[error("the body is not JSON (line {line}, column {column})")]
    NotJson {
        /// Line of the first mistake, from 1.
        line: usize,
        /// Column of the first mistake, from 1.
        column: usize,
    },
    /// No bytes at all, or only white space.
    #[error("the body is empty")]
    Empty,
    /// Arrays and objects nested more than [`MAX_DEPTH`] deep.
    #[error("the body is nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
    /// A `\u` escape that is half of a surrogate pair stands for no character.
    #[error("the body has a \\u escape that is half of a surrogate pair (offset {0})")]
    LoneSurrogate(usize),
}

/// What kind of value a JSON text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `{…}`
    Object,
    /// `[…]`
    Array,
    /// `"…"`
    String,
    /// A number, `true`, `false` or `null`.
    Scalar,
}

/// A top-level member of an object, as ranges of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    /// All that stands between the `{` or `,` before it and the `,` or `}` after it.
    segment: Range<usize>,
    key: Range<usize>,
    value: Range<usize>,
}

/// A checked JSON text and where its top-level members are. Its `Debug` shows nothing of the text.
#[derive(Clone)]
pub struct Scan<'a> {
    text: &'a str,
    value: Range<usize>,
    members: Vec<Member>,
    problem: Option<Malformed>,
}

impl fmt::Debug for Scan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scan({} bytes, {} members)", self.text.len(), self.members.len())
    }
}

impl<'a> Scan<'a> {
    /// Checks that `bytes` are UTF-8 and JSON. What else may be wrong is told by [`Scan::problem`],
    /// so that members can be read from a text that will be refused.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(bytes).map_err(|error| Malformed::NotUtf8(error.valid_up_to()))?;
        let start = text.len() - text.trim_start_matches(WHITE_SPACE).len();
        let end = text.trim_end_matches(WHITE_SPACE).len();
        if start >= end {
            return Err(Malformed::Empty);
        }
        let _: &RawValue = serde_json::from_str(text)
            .map_err(|error| Malformed::NotJson { line: error.line(), column: error.column() })?;
        let mut scan = Self { text, value: start..end, members: Vec::new(), problem: None };
        scan.walk();
        Ok(scan)
    }

    /// What is wrong with the text although it is JSON by its grammar.
    pub fn problem(&self) -> Option<&Malformed> {
        self.problem.as_ref()
    }

    /// The kind of the whole value.
    pub fn shape(&self) -> Shape {
        shape_of(&self.text[self.value.clone()])
    }

    /// The values, in order, of all top-level members with this name (JSON allows a name twice).
    pub fn values<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a str> + 's {
        self.members
            .iter()
            .filter(move |member| self.key_is(member, name))
            .map(|member| &self.text[member.value.clone()])
    }

    fn key_is(&self, member: &Member, name: &str) -> bool {
        decode_string(&self.text[member.key.clone()]).is_some_and(|key| key == name)
    }

    /// The text without its top-level members of this name; every other byte stays as it is.
    pub fn without(&self, name: &str) -> Cow<'a, str> {
        if self.values(name).next().is_none() {
            return Cow::Borrowed(self.text);
        }
        let kept = self.members.iter().filter(|member| !self.key_is(member, name));
        let kept: Vec<&str> = kept.map(|member| &self.text[member.segment.clone()]).collect();
        let inside = match (self.members.first(), self.members.last()) {
            (Some(first), Some(last)) => first.segment.start..last.segment.end,
            _ => self.value.clone(),
        };
        Cow::Owned([&self.text[..inside.start], &kept.join(","), &self.text[inside.end..]].concat())
    }

    /// One pass over a text whose grammar is known to be right.
    fn walk(&mut self) {
        let bytes = self.text.as_bytes();
        let top_is_object = self.shape() == Shape::Object;
        let mut depth = 0_usize;
        let mut key: Option<Range<usize>> = None;
        let mut value_start: Option<usize> = None;
        let mut segment_start = self.value.start + 1;
        let mut at = self.value.start;
        while at < self.value.end {
            let top = top_is_object && depth == 1;
            match bytes[at] {
                b'"' => {
                    let end = self.string_end(at);
                    if top && key.is_none() {
                        key = Some(at..end);
                    } else if top && value_start.is_none() {
                        value_start = Some(at);
                    }
                    at = end;
                    continue;
                }
                b'{' | b'[' => {
                    if top && value_start.is_none() {
                        value_start = Some(at);
                    }
                    depth += 1;
                    if depth > MAX_DEPTH && self.problem.is_none() {
                        self.problem = Some(Malformed::TooDeep);
                    }
                }
                byte @ (b'}' | b']' | b',') => {
                    if top && let (Some(key), Some(start)) = (key.take(), value_start.take()) {
                        let end = self.text[..at].trim_end_matches(WHITE_SPACE).len();
                        self.members.push(Member { segment: segment_start..at, key, value: start..end });
                        segment_start = at + 1;
                    }
                    if byte != b',' {
                        depth -= 1;
                    }
                }
                b':' | b' ' | b'\t' | b'\n' | b'\r' => {}
                _ => {
                    if top && value_start.is_none() {
                        value_start = Some(at);
                    }
                }
            }
            at += 1;
        }
    }

    /// The offset after the string that begins at `start`; notes an escape that is half of a pair.
    fn string_end(&mut self, start: usize) -> usize {
        let bytes = self.text.as_bytes();
        let mut high_at: Option<usize> = None;
        let mut at = start + 1;
        loop {
            let unit = match bytes[at] {
                b'\\' if bytes[at + 1] == b'u' => {
                    u16::from_str_radix(&self.text[at + 2..at + 6], 16).unwrap_or_default()
                }
                _ => 0,
            };
            let low = (0xDC00..0xE000).contains(&unit);
            if (high_at.is_some() != low) && self.problem.is_none() {
                self.problem = Some(Malformed::LoneSurrogate(high_at.unwrap_or(at)));
            }
            high_at = (0xD800..0xDC00).contains(&unit).then_some(at);
            at += match bytes[at] {
                b'"' => return at + 1,
                b'\\' if bytes[at + 1] == b'u' => 6,
                b'\\' => 2,
                _ => 1,
            };
        }
    }
}

/// The white space of JSON (RFC 8259, section 2).
const WHITE_SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// The kind of a JSON value, by its first character.
pub fn shape_of(value: &str) -> Shape {
    match value.trim_start_matches(WHITE_SPACE).as_bytes().first() {
        Some(b'{') => Shape::Object,
        Some(b'[') => Shape::Array,
        Some(b'"') => Shape::String,
        _ => Shape::Scalar,
    }
}

/// The text of a JSON string value; `None` when the value is not a string.
pub fn decode_string(value: &str) -> Option<Cow<'_, str>> {
    #[derive(serde::Deserialize)]
    struct Borrowed<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Borrowed<'_>>(value).ok().map(|text| text.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    fn problem(text: &str) -> Option<Malformed> {
        match Scan::new(text.as_bytes()) {
            Ok(scan) => scan.problem().cloned(),
            Err(malformed) => Some(malformed),
        }
    }

    #[test]
    fn what_is_not_json_is_named() {
        assert_eq!(Scan::new(b"\"\xff\"").unwrap_err(), Malformed::NotUtf8(1));
        assert_eq!(problem(""), Some(Malformed::Empty));
        assert_eq!(problem(" \n"), Some(Malformed::Empty));
        for bad in ["{", "{]", "nul", "[1,]", "{\"a\":1,}", "\"\0\"", "01", "1 2", "\u{feff}1", "{'a':1}"] {
            assert!(matches!(problem(bad), Some(Malformed::NotJson { .. })), "{bad:?}");
        }
    }

    #[test]
    fn nesting_stops_at_128_levels() {
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(problem(&nested(128)), None);
        assert_eq!(problem(&nested(129)), Some(Malformed::TooDeep));
        assert_eq!(problem(&nested(200_000)), Some(Malformed::TooDeep));
        assert_eq!(problem(&format!("[{}1]", "[[[]]],".repeat(500))), None);
    }

    #[test]
    fn half_a_surrogate_pair_is_found_and_a_whole_one_is_not() {
        assert_eq!(problem(r#""\ud83d\ude00""#), None);
        assert_eq!(problem(r#""\\ud83d""#), None);
        assert_eq!(problem(r#"{"a":"x\ud83d"}"#), Some(Malformed::LoneSurrogate(7)));
        assert_eq!(problem(r#""\ude00""#), Some(Malformed::LoneSurrogate(1)));
        assert_eq!(problem(r#""\ud83d\ud83d\ude00""#), Some(Malformed::LoneSurrogate(1)));
        assert_eq!(problem(r#""\ud83dx\ude00""#), Some(Malformed::LoneSurrogate(1)));
        assert_eq!(problem(r#"{"\udc00":1}"#), Some(Malformed::LoneSurrogate(2)));
    }

    #[test]
    fn a_member_goes_with_its_comma_and_nothing_else_moves() {
        for (text, expected) in [
            (r#"{"t":1}"#, "{}"),
            (r#"{ "t" : 1 }"#, "{}"),
            (r#"{"t":1,"a":2}"#, r#"{"a":2}"#),
            (r#"{"a":2,"t":1}"#, r#"{"a":2}"#),
            (r#"{"a":2 , "t":"x,y" , "b" : 3 }"#, r#"{"a":2 , "b" : 3 }"#),
            (r#"{"t":1,"t":2,"a":{"t":3}}"#, r#"{"a":{"t":3}}"#),
            (r#"{"a":1,"t":1,"b":2,"t":3}"#, r#"{"a":1,"b":2}"#),
            (r#"{"\u0074":1,"a":",t"}"#, r#"{"a":",t"}"#),
            (r#"  {"a":1}"#, r#"  {"a":1}"#),
            (r#"["t"]"#, r#"["t"]"#),
        ] {
            let scan = Scan::new(text.as_bytes()).unwrap();
            assert_eq!(scan.without("t"), expected, "{text}");
        }
    }

    #[test]
    fn all_values_of_a_name_are_found_in_order() {
        let text = r#"{"a":1, "b":{"a":9}, "\u0061": [2, {"a":3}] ,"a":"x\"y"}"#;
        let scan = Scan::new(text.as_bytes()).unwrap();
        assert_eq!(scan.values("a").collect::<Vec<_>>(), ["1", r#"[2, {"a":3}]"#, r#""x\"y""#]);
        assert_eq!(scan.shape(), Shape::Object);
        assert_eq!(decode_string(r#""x\"y""#).unwrap(), "x\"y");
        assert_eq!(decode_string("12"), None);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec(("[a-c\\\\\"{},:é]{0,2}", inner), 0..6)
                    .prop_map(|members| Value::from(members.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    proptest! {
        #[test]
        fn removing_a_member_is_what_a_parser_would_do(value in any_json(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.unwrap();
            let value: Value = serde_json::from_str(&text).unwrap();
            let scan = Scan::new(text.as_bytes()).unwrap();
            prop_assert_eq!(scan.problem(), None);
            let mut expected = value.clone();
            let removed = expected.as_object_mut().and_then(|object| object.remove("a"));
            prop_assert_eq!(scan.values("a").map(|v| serde_json::from_str::<Value>(v).unwrap()).next(), removed);
            prop_assert_eq!(serde_json::from_str::<Value>(&scan.without("a")).unwrap(), expected);
        }

        #[test]
        fn no_bytes_at_all_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Scan::new(&bytes).map(|scan| scan.without("a").into_owned());
        }
    }
}
