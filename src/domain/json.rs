//! Checks a JSON text that is passed on unchanged, and finds some of its top-level members.
//!
//! `serde_json` checks the grammar. This module checks what `serde_json` does not check in values that it skips: the
//! depth, and `\u` escapes that are half of a surrogate pair.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use memchr::{memchr, memchr2_iter};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

/// Maximum depth of nested arrays and objects.
pub const MAX_DEPTH: usize = 128;

/// Why a body is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    /// Not UTF-8.
    #[error("the body is not UTF-8 (first invalid byte at offset {0})")]
    NotUtf8(usize),
    /// Not a JSON text.
    #[error("the body is not JSON (line {line}, column {column})")]
    NotJson {
        /// Line of the first error, from 1.
        line: usize,
        /// Column of the first error, from 1.
        column: usize,
    },
    /// No bytes, or only white space.
    #[error("the body is empty")]
    Empty,
    /// Arrays and objects nested more than [`MAX_DEPTH`] deep.
    #[error("the body is nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
    /// A `\u` escape that is one half of a surrogate pair.
    #[error("the body has a \\u escape that is half of a surrogate pair (offset {0})")]
    LoneSurrogate(usize),
}

/// The type of a JSON value.
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

/// A member of the top-level object, as ranges of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    /// Index of its name in `names`.
    name: usize,
    /// From the `{` or `,` before it to the `,` or `}` after it, both excluded.
    segment: Range<usize>,
    value: Range<usize>,
}

/// A checked JSON text, and those of its top-level members that have a requested name. `Debug` does not show the text.
#[derive(Clone)]
pub struct Scan<'a> {
    text: &'a str,
    shape: Shape,
    names: Vec<&'a str>,
    members: Vec<Member>,
    /// Number of top-level members, with any name.
    count: usize,
    problem: Option<Malformed>,
}

impl fmt::Debug for Scan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scan({} bytes, {} members)", self.text.len(), self.members.len())
    }
}

impl<'a> Scan<'a> {
    /// Checks UTF-8 and JSON, and finds the top-level members with these names. Depth and surrogates are reported by
    /// [`Scan::problem`], so that the token of a refused text can still be read.
    pub fn new(bytes: &'a [u8], names: impl IntoIterator<Item = &'a str>) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(bytes).map_err(|error| Malformed::NotUtf8(error.valid_up_to()))?;
        if text.trim_matches(WHITE_SPACE).is_empty() {
            return Err(Malformed::Empty);
        }
        let (names, shape) = (names.into_iter().collect::<Vec<_>>(), shape_of(text));
        let mut json = serde_json::Deserializer::from_str(text);
        let found = match shape {
            Shape::Object => json.deserialize_map(MemberVisitor { text, names: &names }),
            Shape::Array | Shape::String | Shape::Scalar => {
                IgnoredAny::deserialize(&mut json).map(|IgnoredAny| (Vec::new(), 0))
            }
        };
        let found = found.and_then(|found| json.end().map(|()| found));
        let (members, count) =
            found.map_err(|error| Malformed::NotJson { line: error.line(), column: error.column() })?;
        let problem = lone_surrogate(text).map(Malformed::LoneSurrogate);
        let problem = if is_too_deep(text) { Some(Malformed::TooDeep) } else { problem };
        Ok(Self { text, shape, names, members, count, problem })
    }

    /// Excessive depth or a lone surrogate, if the text has one. The token can be read all the same.
    pub fn problem(&self) -> Option<&Malformed> {
        self.problem.as_ref()
    }

    /// The type of the whole value.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Values of the members with this name, in order; JSON allows duplicates. Finds only names passed to
    /// [`Scan::new`].
    pub fn values<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a str> + 's {
        self.named(name).map(|member| &self.text[member.value.clone()])
    }

    /// Number of top-level members whose names are not among these. 0 if the text is not an object.
    pub fn count_others(&self, names: &[&str]) -> usize {
        let is_one = |member: &&Member| names.contains(&self.names[member.name]);
        self.count - self.members.iter().filter(is_one).count()
    }

    fn named<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s Member> + 's {
        self.members.iter().filter(move |member| self.names[member.name] == name)
    }

    /// Removes the members that have this name, with the white space around them and one adjacent comma, if there is
    /// one. All other bytes are unchanged.
    pub fn without(&self, name: &str) -> Cow<'a, str> {
        let mut kept = String::new();
        let mut end = 0;
        for member in self.named(name) {
            append(&mut kept, &self.text[end..member.segment.start]);
            end = member.segment.end;
        }
        if end == 0 {
            return Cow::Borrowed(self.text);
        }
        append(&mut kept, &self.text[end..]);
        Cow::Owned(kept)
    }
}

/// Appends the text after a removed member, without one of the two commas around it.
fn append(kept: &mut String, rest: &str) {
    let rest = match (kept.as_bytes().last(), rest.as_bytes().first()) {
        (Some(_), Some(b',')) => &rest[1..],
        (Some(b','), Some(b'}')) => {
            kept.pop();
            rest
        }
        _ => rest,
    };
    kept.push_str(rest);
}

/// Finds members while `serde_json` checks the text.
struct MemberVisitor<'a, 'n> {
    text: &'a str,
    names: &'n [&'a str],
}

impl<'de> Visitor<'de> for MemberVisitor<'de, '_> {
    /// The members that have a requested name, and the number of all members.
    type Value = (Vec<Member>, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut members, mut count) = (Vec::new(), 0);
        while let Some(key) = map.next_key::<&'de RawValue>()? {
            count += 1;
            let Some(name) = self.names.iter().position(|name| is_name(key.get(), name)) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let key = self.range(key);
            let value = self.range(map.next_value()?);
            let start = self.text[..key.start].trim_end_matches(WHITE_SPACE).len();
            let after = &self.text[value.end..];
            let end = self.text.len() - after.trim_start_matches(WHITE_SPACE).len();
            members.push(Member { name, segment: start..end, value });
        }
        Ok((members, count))
    }
}

impl<'de> MemberVisitor<'de, '_> {
    /// The range of a part of the text.
    fn range(&self, part: &'de RawValue) -> Range<usize> {
        let start = part.get().as_ptr().addr() - self.text.as_ptr().addr();
        start..start + part.get().len()
    }
}

/// Whether a quoted key equals this name. Only a key with a backslash is decoded.
fn is_name(key: &str, name: &str) -> bool {
    let inner = &key[1..key.len() - 1];
    inner == name
        || memchr(b'\\', inner.as_bytes()).is_some() && decode_string(key).is_some_and(|key| key == name)
}

/// The offset of the first escape that is half of a surrogate pair, in a JSON text.
fn lone_surrogate(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut high: Option<usize> = None;
    let mut at = 0;
    while let Some(offset) = memchr(b'\\', &bytes[at..]) {
        let escape = at + offset;
        let is_unicode = bytes[escape + 1] == b'u';
        let digits = is_unicode.then(|| &text[escape + 2..escape + 6]);
        let unit = digits.map_or(0, |digits| u16::from_str_radix(digits, 16).unwrap_or_default());
        let is_low = (0xDC00..0xE000).contains(&unit);
        if let Some(high) = high.filter(|high| !is_low || high + 6 != escape) {
            return Some(high);
        }
        if high.is_none() && is_low {
            return Some(escape);
        }
        high = (0xD800..0xDC00).contains(&unit).then_some(escape);
        at = escape + if is_unicode { 6 } else { 2 };
    }
    high
}

/// Whether a JSON text is nested deeper than [`MAX_DEPTH`].
fn is_too_deep(text: &str) -> bool {
    // Fast path: few texts have this many brackets.
    if memchr2_iter(b'{', b'[', text.as_bytes()).nth(MAX_DEPTH).is_none() {
        return false;
    }
    let (mut depth, mut is_string, mut is_escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => is_string = !is_string,
            b'{' | b'[' if !is_string => depth += 1,
            b'}' | b']' if !is_string => depth -= 1,
            _ => {}
        }
        if depth > MAX_DEPTH {
            return true;
        }
    }
    false
}

/// The white space of JSON (RFC 8259, section 2).
const WHITE_SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// The type of a JSON value, by its first character.
pub fn shape_of(value: &str) -> Shape {
    match value.trim_start_matches(WHITE_SPACE).as_bytes().first() {
        Some(b'{') => Shape::Object,
        Some(b'[') => Shape::Array,
        Some(b'"') => Shape::String,
        _ => Shape::Scalar,
    }
}

/// The decoded text of a JSON string; `None` if the value is not a string.
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

    const NAMES: [&str; 3] = ["t", "a", "\u{e9}\"\\"];

    fn problem(text: &str) -> Option<Malformed> {
        match Scan::new(text.as_bytes(), NAMES) {
            Ok(scan) => scan.problem().cloned(),
            Err(malformed) => Some(malformed),
        }
    }

    #[test]
    fn invalid_body_error_names_the_defect() {
        assert_eq!(Scan::new(b"\"\xff\"", NAMES).unwrap_err(), Malformed::NotUtf8(1));
        assert_eq!(problem(""), Some(Malformed::Empty));
        assert_eq!(problem(" \n"), Some(Malformed::Empty));
        for bad in ["{", "{]", "nul", "[1,]", "{\"a\":1,}", "\"\0\"", "01", "1 2", "\u{feff}1", "{'a':1}"] {
            assert!(matches!(problem(bad), Some(Malformed::NotJson { .. })), "{bad:?}");
        }
    }

    #[test]
    fn nesting_is_limited_to_128_levels() {
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(problem(&nested(128)), None);
        assert_eq!(problem(&nested(129)), Some(Malformed::TooDeep));
        assert_eq!(problem(&nested(200_000)), Some(Malformed::TooDeep));
        assert_eq!(problem(&format!("[{}1]", "[[[]]],".repeat(500))), None);
    }

    #[test]
    fn only_lone_surrogates_are_reported() {
        assert_eq!(problem(r#""\ud83d\ude00""#), None);
        assert_eq!(problem(r#""\\ud83d""#), None);
        assert_eq!(problem(r#"{"a":"x\ud83d"}"#), Some(Malformed::LoneSurrogate(7)));
        assert_eq!(problem(r#""\ude00""#), Some(Malformed::LoneSurrogate(1)));
        assert_eq!(problem(r#""\ud83d\ud83d\ude00""#), Some(Malformed::LoneSurrogate(1)));
        assert_eq!(problem(r#""\ud83dx\ude00""#), Some(Malformed::LoneSurrogate(1)));
        assert_eq!(problem(r#"{"\udc00":1}"#), Some(Malformed::LoneSurrogate(2)));
    }

    #[test]
    fn member_is_removed_with_one_comma() {
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
            let scan = Scan::new(text.as_bytes(), NAMES).unwrap();
            assert_eq!(scan.without("t"), expected, "{text}");
        }
    }

    #[test]
    fn all_values_of_a_name_are_found_in_order() {
        let text = r#"{"a":1, "b":{"a":9}, "\u0061": [2, {"a":3}] ,"a":"x\"y"}"#;
        let scan = Scan::new(text.as_bytes(), NAMES).unwrap();
        assert_eq!(scan.values("a").collect::<Vec<_>>(), ["1", r#"[2, {"a":3}]"#, r#""x\"y""#]);
        assert_eq!(scan.shape(), Shape::Object);
        assert_eq!((scan.count_others(&[]), scan.count_others(&["a"]), scan.count_others(&["t"])), (4, 1, 4));
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
        fn removal_agrees_with_a_json_parser(value in any_json(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.unwrap();
            let value: Value = serde_json::from_str(&text).unwrap();
            let scan = Scan::new(text.as_bytes(), NAMES).unwrap();
            prop_assert_eq!(scan.problem(), None);
            let mut expected = value.clone();
            let removed = expected.as_object_mut().and_then(|object| object.remove("a"));
            prop_assert_eq!(scan.values("a").map(|v| serde_json::from_str::<Value>(v).unwrap()).next(), removed);
            prop_assert_eq!(serde_json::from_str::<Value>(&scan.without("a")).unwrap(), expected);
        }

        #[test]
        fn arbitrary_bytes_cause_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Scan::new(&bytes, NAMES).map(|scan| scan.without("a").into_owned());
        }
    }
}
