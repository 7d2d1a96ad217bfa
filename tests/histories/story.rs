//! A readable report about one conversation.

use std::fmt::Write;

use crate::checker::Violation;
use crate::record::{Action, Conversation, Outage, Reply, Time};

/// Maximum number of reported violations.
const TOLD: usize = 8;

/// Lists all events by time, in milliseconds from the start.
pub(crate) fn tell(conversation: &Conversation, outages: &[Outage], violations: &[&Violation]) -> String {
    let begun =
        conversation.operations.iter().map(crate::record::Operation::invoked).min().unwrap_or_default();
    let ms = |time: Time| (i128::from(time) - i128::from(begun)) / 1_000;
    let mut lines: Vec<(Time, String)> = Vec::new();
    for outage in outages {
        lines.push((
            outage.from,
            format!("{:>6}..{:<6} *** {}", ms(outage.from), ms(outage.until), outage.what),
        ));
    }
    for operation in &conversation.operations {
        for attempt in &operation.attempts {
            let reply = attempt.reply.as_ref().map_or_else(|| "no answer".to_owned(), brief);
            let span = format!("{:>6}..{:<6}", ms(attempt.invoked), ms(attempt.returned));
            let id = &attempt.request_id[..8];
            let line = format!("{span} @{} {id} {} -> {reply}", attempt.replica, asked(&operation.action));
            lines.push((attempt.invoked, line));
        }
    }
    lines.sort();
    let mut story = format!("conversation {}\n", conversation.id);
    for (_, line) in lines {
        writeln!(story, "  {line}").unwrap();
    }
    for (id, data) in &conversation.truth.events {
        writeln!(story, "  channel {id}: {data}").unwrap();
    }
    if let Some(view) = &conversation.truth.view {
        writeln!(story, "  shown as {view}").unwrap();
    }
    let own = violations.iter().filter(|violation| violation.conversation == conversation.id);
    for violation in own.take(TOLD) {
        writeln!(story, "  VIOLATION of {:?}: {}", violation.rule, violation.what).unwrap();
    }
    story
}

fn asked(action: &Action) -> String {
    match action {
        Action::Issue { asked, key } => {
            let key = key.as_deref().unwrap_or("no key");
            format!("issue {} of {} for {} ms ({key})", asked.tool_call, asked.turn, asked.timeout_ms)
        }
        Action::Post(post) => {
            format!("post {:?} {:?} for {}", post.says, post.result, post.work_item)
        }
        other => format!("{other:?}"),
    }
}

fn brief(reply: &Reply) -> String {
    let words = ["status", "workItemId", "receivedAt", "deadline", "state", "outcome", "endedAt"];
    let words: Vec<&str> =
        words.iter().map(|word| reply.text(word)).filter(|word| !word.is_empty()).collect();
    let sequence = reply.number("sequence").map(|sequence| format!(" #{sequence}")).unwrap_or_default();
    let replayed = if reply.body["replayed"] == true { " replayed" } else { "" };
    format!("{} {}{}{sequence}{replayed}", reply.status, reply.code(), words.join(" "))
}
