//! The chart: throughput and p99 by competitor and store, and by number of connections. Plain SVG, without scripts
//! or external fonts.

mod bars;
mod lines;

use std::fmt::Write;

use crate::options::SectionName;
use crate::sections::Outcome;
use crate::summary::Summary;

const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 24.0;
const HEAD: f64 = 64.0;

const INK: &str = "#1f2933";
const FAINT: &str = "#7b8794";
const GRID: &str = "#dfe4ea";

/// An SVG document under construction.
#[derive(Default)]
struct Drawing {
    text: String,
}

/// Alignment of a text.
#[derive(Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

impl Drawing {
    fn rectangle(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), fill: &str) {
        let _ = writeln!(
            self.text,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{fill}"/>"#
        );
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), stroke: &str, width: f64) {
        let _ = writeln!(
            self.text,
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{stroke}" stroke-width="{width}"/>"#
        );
    }

    fn dot(&mut self, (x, y): (f64, f64), fill: &str) {
        let _ = writeln!(self.text, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.5" fill="{fill}"/>"#);
    }

    fn label(&mut self, (x, y): (f64, f64), size: u32, anchor: Anchor, fill: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            self.text,
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}" text-anchor="{anchor}" fill="{fill}">{text}</text>"#
        );
    }
}

/// One colour for each kind of competitor, the same in all panels.
fn colour(competitor: &str) -> &'static str {
    match competitor {
        name if name.contains("bare") => "#9aa5b1",
        name if name.contains("HMAC") => "#52606d",
        name if name.contains("memory store") => "#2f80c2",
        name if name.contains("always") => "#b44d12",
        name if name.contains("everysec") => "#de7b2d",
        name if name.contains("service") => "#e8a33d",
        _ => "#7b8794",
    }
}

/// Draws the measured sections. `None` if there is none to draw.
pub(crate) fn draw(outcomes: &[Outcome], machine: &str) -> Option<String> {
    let rows =
        |name| outcomes.iter().find(|outcome| outcome.name == name).map(|outcome| outcome.rows.as_slice());
    let (stores, concurrency) = (rows(SectionName::Stores), rows(SectionName::Concurrency));
    let mut drawing = Drawing::default();
    let mut bottom = HEAD;
    if let Some(rows) = stores {
        bottom = bars::draw(&mut drawing, rows, bottom);
    }
    if let Some(rows) = concurrency {
        bottom = lines::draw(&mut drawing, rows, bottom);
    }
    if stores.is_none() && concurrency.is_none() {
        return None;
    }
    let mut head = Drawing::default();
    head.label(
        (MARGIN, 32.0),
        20,
        Anchor::Start,
        INK,
        "callback-ingress beside a bare route and hand-written handlers",
    );
    head.label((MARGIN, 52.0), 12, Anchor::Start, FAINT, machine);
    let height = bottom + MARGIN;
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
         height=\"{height:.0}\" font-family=\"Helvetica, Arial, sans-serif\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{}{}</svg>\n",
        head.text, drawing.text
    ))
}

/// The next round number, as the maximum of an axis.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1e-9).log10().floor());
    let steps = [1.0, 1.2, 1.6, 2.0, 2.4, 3.2, 4.0, 6.0, 8.0, 10.0];
    steps.into_iter().map(|step| step * power).find(|&end| end >= value).unwrap_or(10.0 * power)
}

fn milliseconds(value: f64) -> String {
    if value < 10.0 { format!("{value:.2} ms") } else { format!("{value:.1} ms") }
}

/// The groups of rows in order of appearance.
fn groups(rows: &[Summary]) -> Vec<&str> {
    let mut groups: Vec<&str> = rows.iter().map(|row| row.group.as_str()).collect();
    groups.dedup();
    groups
}
