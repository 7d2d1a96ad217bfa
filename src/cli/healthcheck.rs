//! `healthcheck`: for containers and scripts. Exits with 0 if the response is 2xx, otherwise with 1.
//!
//! Requests `/health/live` by default: an orchestrator must not restart all instances because Redis is unavailable.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Args;

use super::client::{ClientError, builder, call};
use super::client_tls::{pinned, trusting};
use super::outcome::{Failure, print};
use crate::config::LoadedConfig;

#[derive(Debug, Args)]
#[expect(clippy::doc_markdown, reason = "shown as help on the terminal")]
pub(super) struct HealthcheckArgs {
    /// Check that the service can accept callbacks (/health), not only that the process is alive (/health/live)
    #[arg(long)]
    ready: bool,
    /// URL to request, instead of the health path on http.public_addr
    #[arg(long, value_name = "URL", conflicts_with = "ready")]
    url: Option<String>,
    /// Timeout in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2_000)]
    timeout_ms: u64,
}

impl HealthcheckArgs {
    /// The settings flags that this command uses.
    pub(super) const fn used_settings(&self) -> &'static [&'static str] {
        if self.url.is_some() { &["--config", "--set"] } else { &["--config", "--set", "--public-addr"] }
    }

    const fn path(&self) -> &'static str {
        if self.ready { "/health" } else { "/health/live" }
    }
}

/// Replaces an unspecified address with the loopback address.
pub(super) fn connectable(address: SocketAddr) -> SocketAddr {
    let ip = match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        SocketAddr::V4(_) | SocketAddr::V6(_) => address.ip(),
    };
    SocketAddr::new(ip, address.port())
}

pub(super) async fn run(loaded: LoadedConfig, arguments: HealthcheckArgs) -> Result<(), Failure> {
    let address = connectable(loaded.config.http.public_addr);
    let timeout = Duration::from_millis(arguments.timeout_ms);
    let own_tls = loaded.config.public_tls().filter(|_| arguments.url.is_none());
    let scheme = if own_tls.is_some() { "https" } else { "http" };
    let path = arguments.path();
    let url = arguments.url.unwrap_or_else(|| format!("{scheme}://{address}{path}"));
    let no_client =
        |error: ClientError| Failure::Runtime(format!("cannot create the HTTP client: {error}").into());
    let tls = own_tls.map_or_else(|| trusting(None), |files| pinned(&files.chain)).map_err(no_client)?;
    let client = builder(tls).no_proxy().timeout(timeout).build().map_err(|error| no_client(error.into()))?;
    let no_response =
        |error: ClientError| Failure::Runtime(format!("no response from {url}: {error}").into());
    let response = call(client.get(&url)).await.map_err(no_response)?;
    let text = String::from_utf8_lossy(&response.body);
    if response.status.is_success() {
        print(&format!("{text}\n"))
    } else {
        Err(Failure::Runtime(format!("{url} responded with {}: {text}", response.status).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unspecified_address_is_replaced_by_loopback() {
        for (configured, expected) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("127.0.0.1:1", "127.0.0.1:1")]
        {
            assert_eq!(connectable(configured.parse().unwrap()), expected.parse().unwrap());
        }
    }
}
