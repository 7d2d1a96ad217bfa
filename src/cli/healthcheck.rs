//! `healthcheck`: for containers and scripts. Exit 0 when `/health` answers 200, else 1.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::http::Method;
use clap::Args;

use super::client::{Call, Client};
use super::{Failure, pinned, say};
use crate::config::LoadedConfig;

/// Whom to ask, and how long to wait.
#[derive(Debug, Args)]
#[expect(clippy::doc_markdown, reason = "shown as help on the terminal")]
pub(super) struct Arguments {
    /// The URL to ask, instead of /health under http.public_addr
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// How long to wait for the answer, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2_000)]
    timeout_ms: u64,
}

/// An address that every interface answers is asked on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        SocketAddr::V4(_) | SocketAddr::V6(_) => address.ip(),
    };
    SocketAddr::new(ip, address.port())
}

pub(super) async fn run(loaded: LoadedConfig, arguments: Arguments) -> Result<(), Failure> {
    let address = reachable(loaded.config.http.public_addr);
    let limit = Duration::from_millis(arguments.timeout_ms);
    let own_tls = loaded.config.public_tls().filter(|_| arguments.url.is_none());
    let scheme = if own_tls.is_some() { "https" } else { "http" };
    let url = arguments.url.unwrap_or_else(|| format!("{scheme}://{address}/health"));
    let asked = if let Some(files) = own_tls {
        pinned::get(address, "/health", &files.chain, limit).await
    } else {
        let call = Call { method: Method::GET, url: &url, headers: Vec::new(), body: None };
        Client::new(limit).call(call).await
    };
    let reply = asked.map_err(|error| Failure::Failed(format!("{url} does not answer: {error}").into()))?;
    let text = String::from_utf8_lossy(&reply.body);
    if reply.status.is_success() {
        say(&format!("{text}\n"))
    } else {
        Err(Failure::Failed(format!("{url} answers {}: {text}", reply.status).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_all_interfaces_is_asked_on_loopback() {
        for (configured, asked) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("127.0.0.1:1", "127.0.0.1:1")]
        {
            assert_eq!(reachable(configured.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
