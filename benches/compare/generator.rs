//! The parent's side of the load generator.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};

use serde::de::DeserializeOwned;

use crate::children::{Process, this_program};
use crate::plan::Plan;
use crate::protocol::{Command, Latencies, Pace, Tally, Target};

pub(crate) struct Generator {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _process: Process,
}

impl Generator {
    pub(crate) fn start() -> Self {
        let mut process = Process::start(this_program("load").stdin(Stdio::piped()).stdout(Stdio::piped()));
        let (input, output) = (process.child().stdin.take().unwrap(), process.output());
        Self { input, output, _process: process }
    }

    pub(crate) fn open(&mut self, target: &Target, plan: Plan) -> Tally {
        self.ask(&Command::Open { target: target.clone(), plan })
    }

    pub(crate) fn issue(&mut self) -> Tally {
        self.ask(&Command::Issue)
    }

    pub(crate) fn post(&mut self, from: usize, to: usize, pace: Pace) -> Tally {
        self.ask(&Command::Post { from, to, pace })
    }

    pub(crate) fn follow(&mut self, posts: usize, pause_ms: u64) -> Latencies {
        self.ask(&Command::Follow { posts, pause_ms })
    }

    fn ask<T: DeserializeOwned>(&mut self, command: &Command) -> T {
        writeln!(self.input, "{}", serde_json::to_string(command).unwrap()).unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the load generator ended: it says why above");
        serde_json::from_str(&line).unwrap()
    }
}
