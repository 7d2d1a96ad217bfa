//! A bar for each competitor: throughput on the left, p99 on the right.

use super::{Anchor, Drawing, FAINT, GRID, INK, MARGIN, WIDTH, colour, milliseconds, round_up};
use crate::summary::{Spread, Summary};
use crate::table::whole;

const ROW: f64 = 26.0;
const BAR: f64 = 16.0;
const NAMES: f64 = 210.0;
/// Width of the values beside the bars.
const VALUES: f64 = 110.0;
const GAP: f64 = 40.0;

/// Draws both panels below `top`. Returns their bottom.
pub(super) fn draw(drawing: &mut Drawing, rows: &[Summary], top: f64) -> f64 {
    let left = MARGIN + NAMES;
    let middle = left + (WIDTH - left - MARGIN) * 0.55;
    let first = top + 56.0;
    let bottom = first + ROW * rows.len() as f64;
    for (at, row) in rows.iter().enumerate() {
        let y = first + ROW * at as f64 + BAR - 3.0;
        drawing.label((left - 8.0, y), 12, Anchor::End, INK, &row.competitor);
    }
    let rate = |row: &Summary| format!("{}  ({:.3})", whole(row.rate.median), row.ratio);
    let p99 = |row: &Summary| milliseconds(row.p99_ms.median);
    let panel = Panel { top, bottom, first };
    panel.draw(
        drawing,
        (left, middle - GAP),
        "Requests a second (ratio to bare axum)",
        rows,
        |row| row.rate,
        rate,
    );
    panel.draw(
        drawing,
        (middle, WIDTH - MARGIN),
        "p99 at 64 connections, closed loop",
        rows,
        |row| row.p99_ms,
        p99,
    );
    bottom + 24.0
}

struct Panel {
    top: f64,
    bottom: f64,
    first: f64,
}

impl Panel {
    fn draw(
        &self,
        drawing: &mut Drawing,
        (left, right): (f64, f64),
        title: &str,
        rows: &[Summary],
        value: impl Fn(&Summary) -> Spread,
        text: impl Fn(&Summary) -> String,
    ) {
        // A whisker ends at the axis, so that an outlier does not shrink all other bars.
        let medians = rows.iter().map(|row| value(row).median).fold(0.0, f64::max);
        let most = rows.iter().map(|row| value(row).max).fold(0.0, f64::max);
        let end = round_up(most.min(2.0 * medians));
        let width = right - left - VALUES;
        let x = |value: f64| left + width * value.min(end) / end;
        drawing.label((left, self.top + 24.0), 14, Anchor::Start, INK, title);
        for part in 0..=4 {
            let at = end * f64::from(part) / 4.0;
            drawing.line((x(at), self.first - 8.0), (x(at), self.bottom), GRID, 1.0);
            let text = if end < 100.0 { format!("{at:.1}") } else { whole(at) };
            drawing.label((x(at), self.first - 12.0), 10, Anchor::Middle, FAINT, &text);
        }
        for (at, row) in rows.iter().enumerate() {
            let (y, spread) = (self.first + ROW * at as f64, value(row));
            drawing.rectangle((left, y), (x(spread.median) - left, BAR), colour(&row.competitor));
            let centre = y + BAR / 2.0;
            drawing.line((x(spread.min), centre), (x(spread.max), centre), INK, 1.2);
            for end in [spread.min, spread.max] {
                drawing.line((x(end), centre - 4.0), (x(end), centre + 4.0), INK, 1.2);
            }
            drawing.label((x(spread.max) + 8.0, y + BAR - 4.0), 11, Anchor::Start, INK, &text(row));
        }
    }
}
