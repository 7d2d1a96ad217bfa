//! The output of the demo: with colour on a terminal, subject to `NO_COLOR` and `CLICOLOR`.

use anstream::println;
use anstyle::{AnsiColor, Color, Style};
use serde_json::Value;

use crate::cli::width::wrapped;

const TITLE: Style = Style::new().bold();
const STEP: Style = Style::new().bold().fg_color(Some(Color::Ansi(AnsiColor::Cyan)));
const GOOD: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Green)));
const REFUSED: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Yellow)));
const PROBLEM: Style = Style::new().bold().fg_color(Some(Color::Ansi(AnsiColor::Red)));
const CHANNEL: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Magenta)));
const FAINT: Style = Style::new().dimmed();

/// Maximum length of a shown body in characters.
const MAX_BODY_CHARS: usize = 240;
/// Columns before the text of a request, response or envelope.
const INDENT: usize = 6;

fn shorten(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= MAX_BODY_CHARS {
        return line;
    }
    line.chars().take(MAX_BODY_CHARS - 1).chain(['…']).collect()
}

/// `2026-01-01T12:00:00.123Z` as `12:00:00.123`.
fn clock_time(envelope: &Value, field: &str) -> String {
    let time = envelope[field].as_str().unwrap_or_default();
    time.split('T').nth(1).unwrap_or_default().trim_end_matches('Z').to_owned()
}

pub(super) fn title(text: &str) {
    println!("{TITLE}{}{TITLE:#}", wrapped(text, 0, 0));
}

pub(super) fn step(text: &str) {
    println!("\n{STEP}▸ {}{STEP:#}", wrapped(text, 2, 2));
}

/// Shows a request.
pub(super) fn request(what: &str, body: &str) {
    let text = format!("{what} {}", shorten(body));
    println!("    {FAINT}→{FAINT:#} {}", wrapped(text.trim_end(), INDENT, INDENT));
}

/// Shows a further line of the request above.
pub(super) fn header(text: &str) {
    println!("      {}", wrapped(text, INDENT, INDENT));
}

/// Shows a response.
pub(super) fn response(status: u16, what: &str) {
    let style = if status < 300 { GOOD } else { REFUSED };
    let what = wrapped(&shorten(what), INDENT + 4, INDENT);
    println!("    {FAINT}←{FAINT:#} {style}{status}{style:#} {what}");
}

/// Shows an envelope of the event stream.
pub(super) fn envelope(envelope: &Value) {
    let content = [&envelope["result"], &envelope["error"]].into_iter().find(|value| !value.is_null());
    let what =
        format!("channel: {} {}", envelope["sequence"], envelope["outcome"].as_str().unwrap_or_default());
    let content = shorten(&content.map(Value::to_string).unwrap_or_default());
    let content = wrapped(&content, INDENT + what.chars().count() + 1, INDENT);
    println!("    {CHANNEL}⇒ {what}{CHANNEL:#} {content}");
}

pub(super) fn table(envelopes: &[Value]) {
    println!("    {TITLE}seq  kind  outcome    issued        received      released{TITLE:#}");
    for envelope in envelopes {
        println!(
            "    {:<4} {:<5} {:<10} {:<13} {:<13} {}",
            envelope["sequence"].to_string(),
            envelope["kind"].as_str().unwrap_or_default(),
            envelope["outcome"].as_str().unwrap_or_default(),
            clock_time(envelope, "issuedAt"),
            clock_time(envelope, "receivedAt"),
            clock_time(envelope, "releasedAt"),
        );
    }
}

pub(super) fn done(text: &str) {
    println!("\n{GOOD}{}{GOOD:#}", wrapped(text, 0, 0));
}

/// Shows what to do next.
pub(super) fn next(lines: &[&str]) {
    println!("\n{TITLE}Next:{TITLE:#}");
    for line in lines {
        println!("  - {}", wrapped(line, 4, 4));
    }
}

pub(super) fn problem(text: &str) {
    println!("\n{PROBLEM}Unexpected:{PROBLEM:#} {}", wrapped(text, 12, 2));
}
