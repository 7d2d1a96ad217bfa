//! The service under test: the release build of the program, in its own process.

use std::io::{Read, Seek};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::children::{Process, free_ports};

/// The program that Cargo built beside this benchmark.
pub(crate) fn built() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_callback-ingress"))
}

pub(crate) struct Service {
    pub(crate) process: Process,
    pub(crate) public: SocketAddr,
    pub(crate) platform: SocketAddr,
    pub(crate) key: String,
}

impl Service {
    /// Starts it with generated keys. Its log is JSON in a file, or off. The rate limits are disabled.
    pub(crate) fn start(program: &Path, store: &str, log: bool, variables: &[(String, String)]) -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let [public, platform] = free_ports().map(loopback);
        let key = BASE64_STANDARD.encode(rand::random::<[u8; 24]>());
        let signing = BASE64_STANDARD.encode(rand::random::<[u8; 32]>());
        // The file is deleted when the program has exited.
        let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let said = || {
            let (mut text, mut file) = (String::new(), &file);
            let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
            text
        };
        let mut command = Command::new(program);
        command
            .args(["serve", "--store", store])
            .args(["--public-addr", &public.to_string(), "--platform-addr", &platform.to_string()])
            .args(["--set", &format!("platform.service_keys=[{key:?}]")])
            .args(["--set", &format!("token.keys=[\"bench:{signing}\"]")])
            .args(["--set", "rate_limit.failed_max=0", "--set", "telemetry.log_format=json"])
            // A pause of the machine for a second must not cause a failure.
            .args(["--set", "store.response_timeout_ms=10000", "--set", "store.connect_timeout_ms=10000"])
            .args(["--log-level", if log { "info" } else { "off" }])
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file.try_clone().unwrap());
        let mut process = Process::start(&mut command);
        for address in [public, platform] {
            process.wait_until("callback-ingress", said, || TcpStream::connect(address).ok());
        }
        Self { process, public, platform, key }
    }
}
