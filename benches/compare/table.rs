//! Tables for a terminal, within 120 columns.

use crate::summary::Summary;

/// The table of a section.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    pub(crate) title: String,
    /// Names and widths of the columns after the first.
    columns: Vec<(&'static str, usize)>,
    rows: Vec<(String, Vec<String>)>,
    pub(crate) notes: Vec<String>,
}

const NAME: usize = 32;

impl Table {
    pub(crate) fn new(title: &str, columns: &[(&'static str, usize)]) -> Self {
        Self { title: title.to_owned(), columns: columns.to_vec(), ..Self::default() }
    }

    pub(crate) fn row(&mut self, name: &str, cells: Vec<String>) {
        self.rows.push((name.to_owned(), cells));
    }

    /// A heading above the rows of a group.
    pub(crate) fn group(&mut self, name: &str) {
        self.rows.push((format!("[{name}]"), Vec::new()));
    }

    pub(crate) fn print(&self) {
        println!("\n{}", self.title);
        let line = |name: &str, cells: &mut dyn Iterator<Item = &str>| {
            let mut text = format!("{name:<NAME$}");
            for (cell, &(_, width)) in cells.zip(&self.columns) {
                // Widths are in characters.
                text.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
                text.push_str(cell);
            }
            println!("{}", text.trim_end());
        };
        line("", &mut self.columns.iter().map(|(name, _)| *name));
        for (name, cells) in &self.rows {
            line(name, &mut cells.iter().map(String::as_str));
        }
        for note in &self.notes {
            println!("  {note}");
        }
    }

    /// The table of rates.
    pub(crate) fn of_rates(title: &str, rows: &[Summary]) -> Self {
        let mut table = Self::new(
            title,
            &[
                ("requests/s", 11),
                ("min–max", 17),
                ("ratio", 8),
                ("p50 ms", 8),
                ("p99 ms", 8),
                ("server µs", 10),
                ("Redis µs", 9),
                ("script µs", 10),
                ("cmds", 6),
            ],
        );
        let mut group = "";
        for row in rows {
            if row.group != group {
                group = &row.group;
                table.group(group);
            }
            let mut cells = rates(row);
            cells.extend([row.redis_us, row.script_us, row.commands].map(optional));
            table.row(&row.competitor, cells);
            if row.unexpected > 0 {
                let replies: u64 = row.rounds.iter().map(|figures| figures.tally.requests).sum();
                table.notes.push(format!(
                    "{}: {} of {replies} replies had another status than the expected one",
                    row.competitor, row.unexpected
                ));
            }
        }
        table
    }
}

/// The cells of a row's rate, ratio, latencies and processor time of the server.
fn rates(row: &Summary) -> Vec<String> {
    let decimals = if row.ratio < 0.095 { 3 } else { 2 };
    vec![
        whole(row.rate.median),
        format!("{}–{}", whole(row.rate.min), whole(row.rate.max)),
        format!("{:.decimals$}", row.ratio),
        format!("{:.2}", row.p50_ms.median),
        format!("{:.2}", row.p99_ms.median),
        format!("{:.1}", row.server_us),
    ]
}

fn optional(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.1}"))
}

/// A whole number with thousands separators.
pub(crate) fn whole(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
