//! The memory of the program does not grow with the number of requests.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use test_support::process::{peak_resident_kib, resident_kib};
use test_support::redis_server::RedisServer;

use crate::service::{Service, until};

const MEBIBYTE: usize = 1024 * 1024;
const WARM_UP: usize = 40;
const POSTS: usize = 200;
/// Memory that the allocator may keep.
const SLACK_KIB: u64 = 32 * 1024;

/// The program as a process, killed when dropped.
struct Program {
    process: Child,
    service: Service,
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Program {
    async fn start(store: &str) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (public, platform) = (free(), free());
        let mut command = Command::new(env!("CARGO_BIN_EXE_callback-ingress"));
        for (key, value) in Service::variables(public, platform) {
            command.env(key, value);
        }
        let process = command
            .arg("serve")
            .env("CALLBACK_INGRESS__STORE__URL", store)
            .env("CALLBACK_INGRESS__TELEMETRY__LOG_LEVEL", "error")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let program = Self { process, service: Service::elsewhere(public, platform) };
        until("the program listens", async || tokio::net::TcpStream::connect(platform).await.is_ok()).await;
        program
    }

    /// Current and largest resident memory, in KiB.
    fn resident(&self) -> (u64, u64) {
        let pid = self.process.id();
        (resident_kib(pid), peak_resident_kib(pid))
    }
}

/// A JSON string of exactly 1 MiB.
fn large() -> Bytes {
    format!("\"{}\"", "x".repeat(MEBIBYTE - 2)).into()
}

#[tokio::test]
async fn accepted_large_results_do_not_grow_memory() {
    let _turn = super::turn().await;
    let redis = RedisServer::start();
    let program = Program::start(&redis.url(0)).await;
    let service = &program.service;
    let (large, conversation) = (large(), service.open().await);
    let mut before = (0, 0);
    for nth in 0..POSTS {
        if nth == WARM_UP {
            before = program.resident();
        }
        let item = service.tool(&conversation).await;
        assert_eq!(service.callback(&item.token, large.clone()).send().await.status, 202);
    }
    let after = program.resident();
    assert!(
        after.0 < before.0 + SLACK_KIB && after.1 < before.1 + SLACK_KIB,
        "{before:?} KiB, then {after:?}"
    );
}

#[tokio::test]
async fn refused_large_bodies_do_not_grow_memory() {
    let _turn = super::turn().await;
    let program = Program::start("memory:").await;
    let service = &program.service;
    let large = large();
    let item = service.fresh_tool().await;
    assert_eq!(service.callback(&item.token, large.clone()).send().await.status, 202);
    let too_large: Bytes = [&large[..], b" "].concat().into();
    let broken: Bytes = large.slice(..MEBIBYTE - 1);
    let mut before = (0, 0);
    for nth in 0..POSTS {
        if nth == WARM_UP {
            before = program.resident();
        }
        for (body, status) in [(&large, 200), (&too_large, 413), (&broken, 400)] {
            assert_eq!(service.callback(&item.token, body.clone()).send().await.status, status);
        }
        assert_eq!(service.callback("cbt_x", large.clone()).send().await.status, 401);
    }
    let after = program.resident();
    assert!(
        after.0 < before.0 + SLACK_KIB && after.1 < before.1 + SLACK_KIB,
        "{before:?} KiB, then {after:?}"
    );
}
