//! The platform listener: every call with every status.

mod auth;
mod conversations;
mod inspection;
mod issuing;
mod requests;
mod traces;
mod waiting;
mod work_items;

use serde_json::Value;

/// The names of a reply's fields, in alphabetical order.
fn fields(value: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// Sends each request and checks the reply.
async fn check<'a>(
    rows: impl IntoIterator<Item = (&'static str, crate::service::Call<'a>, (u16, &'static str))>,
) {
    for (sentence, call, (status, word)) in rows {
        assert_eq!(call.verdict().await, (status, word.to_owned()), "{sentence}");
    }
}
