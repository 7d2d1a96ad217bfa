//! The real binary: exit codes, signals, output.
