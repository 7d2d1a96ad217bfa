//! The public listener: every reply of the contract's table, and hostile input.

mod bad_input;
mod carriers;
mod connections;
mod drain;
mod heartbeats;
mod http;
mod limits;
mod messages;
mod order;
mod rate;
mod receipts;
mod refusals;
mod results;
mod routes;
mod slowness;
mod store_failures;
mod tls;

use crate::service::{Call, Service};

/// A way to send a token.
type Sending = for<'a> fn(&'a Service, &str) -> Call<'a>;

/// A description, the request, and the expected status and word of the reply.
type Row<'a> = (&'static str, Call<'a>, (u16, &'static str));

/// Sends each request and checks the reply.
async fn check(rows: impl IntoIterator<Item = Row<'_>>) {
    for (sentence, call, (status, word)) in rows {
        assert_eq!(call.verdict().await, (status, word.to_owned()), "{sentence}");
    }
}
