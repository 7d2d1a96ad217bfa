//! A line for each competitor over the number of connections: throughput on the left, p99 on the right.

use super::{Anchor, Drawing, FAINT, GRID, INK, MARGIN, WIDTH, colour, groups, milliseconds};
use crate::summary::{Spread, Summary};
use crate::table::whole;

const HEIGHT: f64 = 260.0;
const AXIS: f64 = 60.0;
const GAP: f64 = 40.0;

/// Draws both panels below `top`. Returns their bottom.
pub(super) fn draw(drawing: &mut Drawing, rows: &[Summary], top: f64) -> f64 {
    let half = (WIDTH - 2.0 * MARGIN - GAP) / 2.0;
    let bottom = top + 48.0 + HEIGHT;
    let mut competitors: Vec<&str> = Vec::new();
    for row in rows {
        if !competitors.contains(&row.competitor.as_str()) {
            competitors.push(&row.competitor);
        }
    }
    let panel = Panel { top, bottom, rows, competitors: &competitors };
    let left = MARGIN + AXIS;
    panel.draw(drawing, (left, MARGIN + half), "Requests a second by connections", |row| row.rate, &whole);
    let left = MARGIN + half + GAP + AXIS;
    panel.draw(drawing, (left, WIDTH - MARGIN), "p99 by connections", |row| row.p99_ms, &milliseconds);
    let mut x = MARGIN + AXIS;
    for competitor in competitors {
        drawing.rectangle((x, bottom + 44.0), (14.0, 4.0), colour(competitor));
        drawing.label((x + 20.0, bottom + 50.0), 12, Anchor::Start, INK, competitor);
        x += 44.0 + 7.0 * competitor.chars().count() as f64;
    }
    bottom + 60.0
}

struct Panel<'a> {
    top: f64,
    bottom: f64,
    rows: &'a [Summary],
    competitors: &'a [&'a str],
}

impl Panel<'_> {
    /// Uses a logarithmic axis, because the values span several orders of magnitude.
    fn draw(
        &self,
        drawing: &mut Drawing,
        (left, right): (f64, f64),
        title: &str,
        value: impl Fn(&Summary) -> Spread,
        text: &dyn Fn(f64) -> String,
    ) {
        let (groups, all) = (groups(self.rows), self.rows.iter().map(|row| value(row).median.max(1e-3)));
        let low = all.clone().fold(f64::MAX, f64::min).log10().floor();
        let high = all.fold(0.0, f64::max).log10().ceil().max(low + 1.0);
        let y = |value: f64| self.bottom - HEIGHT * (value.max(1e-3).log10() - low) / (high - low);
        let x = |at: usize| left + (right - left) * (at as f64 + 0.5) / groups.len() as f64;
        drawing.label((left, self.top + 24.0), 14, Anchor::Start, INK, title);
        for decade in 0..=(high - low) as i32 {
            for step in [1.0, 2.0, 5.0] {
                let at = step * 10_f64.powf(low + f64::from(decade));
                if at.log10() <= high + 1e-9 {
                    drawing.line((left, y(at)), (right, y(at)), GRID, 1.0);
                    drawing.label((left - 6.0, y(at) + 4.0), 10, Anchor::End, FAINT, &text(at));
                }
            }
        }
        for (at, group) in groups.iter().enumerate() {
            drawing.label((x(at), self.bottom + 18.0), 11, Anchor::Middle, INK, group);
        }
        for competitor in self.competitors {
            let of = |group: &&str| {
                let row = self.rows.iter().find(|row| row.group == *group && row.competitor == *competitor);
                row.map(|row| value(row).median)
            };
            let points = groups.iter().enumerate().filter_map(|(at, group)| Some((x(at), y(of(group)?))));
            let points: Vec<(f64, f64)> = points.collect();
            for pair in points.windows(2) {
                drawing.line(pair[0], pair[1], colour(competitor), 2.0);
            }
            for &point in &points {
                drawing.dot(point, colour(competitor));
            }
        }
    }
}
