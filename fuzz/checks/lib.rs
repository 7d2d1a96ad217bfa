//! Properties that must hold for any input, one module per fuzz target. `tests/fuzz.rs` runs the same checks on the corpus.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a check fails by a panic, which is how a fuzz target reports it"
)]
#![expect(clippy::missing_panics_doc, reason = "as above")]

pub mod body;
pub mod carriers;
pub mod config;
pub mod token;
