//! The output of the demo: with colour on a terminal, subject to `NO_COLOR` and `CLICOLOR`.

use anstream::println;
use anstyle::{AnsiColor, Color, Style};
use serde_json::Value;

const TITLE: Style = Style::new().bold();
const STEP: Style = Style::new().bold().fg_color(Some(Color::Ansi(AnsiColor::Cyan)));
const GOOD: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Green)));
const REFUSED: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Yellow)));
const PROBLEM: Style = Style::new().bold().fg_color(Some(Color::Ansi(AnsiColor::Red)));
const CHANNEL: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Magenta)));
const FAINT: Style = Style::new().dimmed();

/// Maximum length of a shown body in characters.
const MAX_BODY_CHARS: usize = 96;

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
    println!("{TITLE}{text}{TITLE:#}");
}

pub(super) fn step(text: &str) {
    println!("\n{STEP}▸ {text}{STEP:#}");
}

/// Shows a request.
pub(super) fn request(what: &str, body: &str) {
    println!("    {FAINT}→{FAINT:#} {what} {}", shorten(body));
}

/// Shows a response.
pub(super) fn response(status: u16, what: &str) {
    let style = if status < 300 { GOOD } else { REFUSED };
    println!("    {FAINT}←{FAINT:#} {style}{status}{style:#} {}", shorten(what));
}

/// Shows an envelope of the event stream.
pub(super) fn envelope(envelope: &Value) {
    let content = [&envelope["result"], &envelope["error"]].into_iter().find(|value| !value.is_null());
    println!(
        "    {CHANNEL}⇒ channel: {} {}{CHANNEL:#} {}",
        envelope["sequence"],
        envelope["outcome"].as_str().unwrap_or_default(),
        shorten(&content.map(Value::to_string).unwrap_or_default()),
    );
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
    println!("\n{GOOD}{text}{GOOD:#}");
}

pub(super) fn problem(text: &str) {
    println!("\n{PROBLEM}Unexpected:{PROBLEM:#} {text}");
}
