//! Text for the terminal: durations, sizes, times, and untrusted strings without control characters.

use std::fmt::Write;

use crate::domain::time::Timestamp;

/// Whether a terminal may act on a character instead of showing it: control characters, line separators, and those that
/// change the direction of text.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// An untrusted string for the terminal. Characters that a terminal may act on are escaped.
pub(super) fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) { shown.extend(c.escape_unicode()) } else { shown.push(c) }
    }
    shown
}

/// A JSON text on one line for the terminal, with the same value. Tabs and line breaks become spaces. Other unsafe
/// characters, which can occur only inside strings, become escapes.
pub(super) fn json_line(json: &str) -> String {
    let mut line = String::with_capacity(json.len());
    for c in json.chars() {
        if matches!(c, '\t' | '\n' | '\r') {
            line.push(' ');
        } else if is_unsafe(c) {
            // Every unsafe character has at most four hexadecimal digits. Writing to a `String` cannot fail.
            let _ = write!(line, "\\u{:04x}", u32::from(c));
        } else {
            line.push(c);
        }
    }
    line
}

/// A duration in at most two units.
pub(super) fn duration(millis: u64) -> String {
    let seconds = millis / 1000;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0 => format!("{millis} ms"),
        1..60 => format!("{seconds}.{} s", millis % 1000 / 100),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{} d {} h", hours / 24, hours % 24),
    }
}

/// A size in bytes.
pub(super) fn size(bytes: u64) -> String {
    let tenths = |unit: u64| format!("{}.{}", bytes / unit, bytes % unit * 10 / unit);
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", tenths(1024)),
        _ => format!("{} MiB", tenths(1_048_576)),
    }
}

/// A time of day in UTC, with the date unless it is that of `today`.
pub(super) fn clock_time(time: Timestamp, today: Timestamp) -> String {
    let (text, today) = (time.to_string(), today.to_string());
    match text.trim_end_matches('Z').split_once('T') {
        Some((date, clock)) if today.starts_with(date) => clock.to_owned(),
        Some((date, clock)) => format!("{date} {clock}"),
        None => text,
    }
}

/// `1 result`, `2 results`.
pub(super) fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(plain("call-7 ✅ é"), "call-7 ✅ é");
        assert_eq!(plain("\u{1b}[2J\r\n\u{9b}x"), "\\u{1b}[2J\\u{d}\\u{a}\\u{9b}x");
        assert_eq!(plain("\u{202e}\u{2066}\u{2028}"), "\\u{202e}\\u{2066}\\u{2028}");
    }

    #[test]
    fn json_line_is_the_same_json() {
        for json in ["{\"a\":\r\n\t[1.50,\n2]}", "\"\u{7f}\u{9b}31m\u{202e}é ✅\\n\"", "\"\u{feff}\""] {
            let line = json_line(json);
            assert!(!line.contains(is_unsafe), "{line}");
            let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            assert_eq!(value(json), value(&line));
        }
    }

    #[test]
    fn durations_and_sizes_are_short() {
        let durations = [0, 999, 1_250, 59_999, 60_000, 3_599_999, 3_600_000, 90_000_000];
        assert_eq!(
            durations.map(duration),
            ["0 ms", "999 ms", "1.2 s", "59.9 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "1 d 1 h"]
        );
        assert_eq!([0, 1023, 1536, 5 << 20].map(size), ["0 B", "1023 B", "1.5 KiB", "5.0 MiB"]);
        assert_eq!([(1, "result"), (2, "result")].map(|(n, what)| count(n, what)), ["1 result", "2 results"]);
    }

    #[test]
    fn date_is_shown_unless_it_is_today() {
        let time = Timestamp::from_millis(1_795_000_000_007);
        assert_eq!(clock_time(time, time.plus_millis(1_000)), "11:06:40.007");
        assert_eq!(clock_time(time, time.plus_millis(86_400_000)), "2026-11-18 11:06:40.007");
    }
}
