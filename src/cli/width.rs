//! Wraps text to the width of the terminal.

use std::io::IsTerminal;

use rustix::termios::tcgetwinsize;

/// Width of a terminal that does not report its size.
const DEFAULT_WIDTH: usize = 80;

/// The columns of standard output. `None` if it is not a terminal: a program that reads it expects unwrapped lines.
fn columns() -> Option<usize> {
    let out = std::io::stdout();
    out.is_terminal().then(|| match tcgetwinsize(&out) {
        Ok(size) if size.ws_col > 0 => size.ws_col.into(),
        Ok(_) | Err(_) => DEFAULT_WIDTH,
    })
}

/// Whether this many characters fit on one line of standard output.
pub(super) fn fits(characters: usize) -> bool {
    columns().is_none_or(|columns| characters <= columns)
}

/// Wraps a text for standard output. The first line begins at column `first`, the others are indented by `indent`.
pub(super) fn wrapped(text: &str, first: usize, indent: usize) -> String {
    match columns() {
        Some(columns) => wrap(text, columns, first, indent),
        None => text.to_owned(),
    }
}

/// Breaks lines between words. A word that is longer than a line is not broken.
fn wrap(text: &str, columns: usize, first: usize, indent: usize) -> String {
    let mut wrapped = String::with_capacity(text.len() + 16);
    let mut column = first;
    for word in text.split(' ') {
        let length = word.chars().count();
        if !wrapped.is_empty() {
            if column + 1 + length > columns {
                wrapped.push('\n');
                wrapped.extend(std::iter::repeat_n(' ', indent));
                column = indent;
            } else {
                wrapped.push(' ');
                column += 1;
            }
        }
        wrapped.push_str(word);
        column += length;
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("one two three", 80, 0, 0), "one two three");
        assert_eq!(wrap("one two three", 9, 2, 2), "one two\n  three");
        assert_eq!(wrap("a-word-of-many-characters and", 8, 0, 2), "a-word-of-many-characters\n  and");
        assert_eq!(wrap("", 8, 0, 0), "");
    }

    #[test]
    fn no_line_is_longer_than_the_terminal() {
        let text =
            "The third provider never responds. Its work item times out, and its results are released.";
        for columns in 20..130 {
            assert!(
                wrap(text, columns, 4, 4).lines().enumerate().all(|(number, line)| {
                    line.chars().count() + if number == 0 { 4 } else { 0 } <= columns
                })
            );
            assert_eq!(wrap(text, columns, 4, 4).replace("\n    ", " "), text);
        }
    }
}
