//! Proof of the checker: stores that break a promise, each of which it must catch. The real service runs; only the
//! wire to Redis calls another script than the one it asked for.

use std::sync::Arc;

use crate::checker::Rule;
use crate::deployment::{Deployment, Kind};
use crate::redis_server::RedisServer;
use crate::run::Batch;

/// An operation's script.
macro_rules! script {
    ($name:literal) => {
        ($name, include_str!(concat!("../../src/store/redis/scripts/", $name, ".lua")))
    };
}

const GATE: (&str, &str) = script!("gate");
const OPERATIONS: [(&str, &str); 9] = [
    script!("open"),
    script!("issue"),
    script!("accept"),
    script!("cancel"),
    script!("end"),
    script!("expire"),
    script!("inspect"),
    script!("work_item"),
    script!("read"),
];

/// How many histories run at once, and how often at most: within these it must be caught. Most are in the first batch;
/// one that shows only in what happens just before an end may take some.
const AT_ONCE: usize = 12;
const BATCHES: u64 = 8;

/// A change of a script: in which file, what, into what.
type Change = (&'static str, &'static str, &'static str);

fn changed((name, text): (&str, &str), changes: &[Change]) -> String {
    let own = changes.iter().filter(|(file, ..)| *file == name);
    own.fold(text.to_owned(), |text, (_, from, to)| {
        assert_eq!(text.matches(from).count(), 1, "{from:?} stands once in {name}.lua");
        text.replace(from, to)
    })
}

/// The scripts that change: the hash that the service asks for, and the one that is called.
fn exchanged(redis: &RedisServer, changes: &[Change]) -> Vec<(String, String)> {
    let mut connection = redis.connection(0);
    let whole = |changes: &[Change], operation| {
        format!("{}\n{}", changed(GATE, changes), changed(operation, changes))
    };
    let pairs = OPERATIONS.into_iter().map(|operation| (whole(&[], operation), whole(changes, operation)));
    pairs
        .filter(|(asked, called)| asked != called)
        .map(|(asked, called)| {
            let asked = redis::Script::new(&asked).get_hash().to_owned();
            (asked, redis::cmd("SCRIPT").arg("LOAD").arg(called).query(&mut connection).unwrap())
        })
        .collect()
}

/// Runs histories on a store that is changed like this, until one breaks one of these rules.
async fn is_caught(changes: &[Change], rules: &[Rule]) {
    let deployment = Deployment::exchanging(Kind::Forgetful(2), |redis| exchanged(redis, changes));
    let deployment = Arc::new(deployment);
    for seed in 1..=BATCHES {
        let done = Batch { seed, histories: AT_ONCE, faults: Vec::new() }.run(&deployment).await;
        let violations: Vec<_> =
            done.verdict.violations.iter().filter(|violation| rules.contains(&violation.rule)).collect();
        if let Some(first) = violations.first() {
            println!("after {} histories: {:?}: {}", seed * AT_ONCE as u64, first.rule, first.what);
            assert!(done.story(&violations).contains("VIOLATION"));
            return;
        }
        let others: Vec<_> = done.verdict.violations.iter().collect();
        assert!(others.is_empty(), "it was caught for another reason:\n{}", done.story(&others));
    }
    panic!("{} histories, and nothing was seen of {changes:?}", BATCHES * AT_ONCE as u64);
}

/// A test for each broken store.
macro_rules! caught {
    ($($name:ident: $changes:expr => $rules:expr;)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() { is_caught(&$changes, &$rules).await; })+
    };
}

caught! {
    a_token_that_is_spent_before_the_work_is_done_is_caught: [
        ("accept", "    local outcome = outcome_at(item, NOW)\n", "
            redis.call('SET', USED, A.fingerprint, 'PX', '60000')
            if NOW % 4 == 0 then return redis.error_reply('BUSY crashed') end
            local outcome = outcome_at(item, NOW)\n"),
    ] => [Rule::Reply];

    a_result_that_overtakes_another_is_caught: [
        ("gate", "    local before = c.gate\n", "    local before = c.gate
            if fresh and fresh.payload and fresh.sequence > c.gate then
                append(c, fresh)
                redis.call('HSET', ITEMS, text(fresh.sequence) .. ':sent', '1')
            end\n"),
        ("gate", "local function append(c, item)\n", "local function append(c, item)
            if redis.call('HGET', ITEMS, text(item.sequence) .. ':sent') then return end\n"),
        ("gate", "'XADD', CHANNEL, text(item.sequence)", "'XADD', CHANNEL, text(redis.call('XLEN', CHANNEL) + 1)"),
    ] => [Rule::Order];

    a_gap_that_is_skipped_is_caught: [
        ("gate", "    local before = c.gate\n", "    local before = c.gate
            if fresh and fresh.payload then c.gate = math.max(c.gate, fresh.sequence) end\n"),
    ] => [Rule::Order];

    a_result_that_is_taken_after_its_deadline_is_caught: [
        ("gate", "elseif now >= item.deadline then", "elseif now >= item.deadline + 100 then"),
        ("gate", "            if NOW < item.deadline then\n", "            if NOW < item.deadline + 100 then\n"),
        ("gate", "NOW < number(seen[2])", "NOW < number(seen[2]) + 100"),
    ] => [Rule::Deadline];

    a_deadline_that_nobody_remembers_is_caught: [
        ("issue", "redis.call('ZADD', DEADLINES", "redis.call('ZREM', DEADLINES"),
    ] => [Rule::Deadline];

    a_cancellation_that_overturns_a_result_is_caught: [
        ("cancel", "outcome = outcome_at(item, NOW)", "outcome = item.outcome == 'cancelled' and 'cancelled'"),
    ] => [Rule::Reply];

    a_repetition_that_counts_again_is_caught: [
        ("accept", "if first then\n    if first ~=", "if first and first ~= A.fingerprint then\n    if first ~="),
        ("accept", "    elseif outcome then\n        return refuse('token_used', item)\n", "
            elseif outcome and false then\n"),
    ] => [Rule::OneWinner];

    a_repetition_that_is_answered_as_the_first_is_caught: [
        ("accept", "replayed = item.attempt == A.attempt and '0' or '1'", "replayed = '0'"),
    ] => [Rule::OneWinner];

    another_body_that_is_taken_for_the_same_is_caught: [
        ("accept", "if first ~= A.fingerprint then", "if false then"),
    ] => [Rule::OneWinner];

    a_held_result_that_is_not_written_down_is_caught: [
        ("gate", "redis.call('HSET', HELD, text(fresh.sequence), fresh.payload)", "redis.call('EXISTS', HELD)"),
    ] => [Rule::Bytes];

    a_result_that_is_written_anew_is_caught: [
        ("accept", "payload = A.payload,", "payload = string.gsub(A.payload, ' ', ''),"),
    ] => [Rule::Bytes];

    an_idempotency_key_that_is_ignored_is_caught: [
        ("issue", "local known = A.idempotency and", "local known = false and"),
    ] => [Rule::Idempotency];

    a_result_that_is_acknowledged_before_it_is_written_is_caught: [
        ("accept", "if not c.ended then\n    release", "if not c.ended and NOW % 4 > 0 then\n    release"),
    ] => [Rule::Lost, Rule::Bytes, Rule::Deadline];

    a_result_that_counts_and_is_refused_is_caught: [
        ("accept", "return with_released(describe", "
            if NOW % 4 == 0 then return redis.error_reply('BUSY later') end
            return with_released(describe"),
    ] => [Rule::Uncalled];

    an_envelope_in_another_conversation_is_caught: [
        ("gate", "redis.call('XADD', CHANNEL,", "redis.pcall('XADD', redis.call('GETSET', 'last', CHANNEL) or CHANNEL,"),
    ] => [Rule::Order, Rule::Crossed];

    an_end_that_does_not_end_is_caught: [
        ("end", "'ended_at', text(NOW), 'dropped_held'", "'dropped_held'"),
    ] => [Rule::Ending];

    an_end_that_drops_what_had_timed_out_is_caught: [
        ("issue", "redis.call('ZADD', DEADLINES, item.deadline", "redis.call('ZADD', DEADLINES, item.deadline + 1000"),
        ("end", "    release(c)\n", ""),
    ] => [Rule::Ending];

    an_end_that_drops_what_was_cancelled_is_caught: [
        ("cancel", "    release(c, item)\n", "
            redis.call('ZADD', DEADLINES, text(NOW + 800), A.reference .. '/' .. item.id)\n"),
        ("end", "    release(c)\n", ""),
    ] => [Rule::Ending];

    a_cancellation_after_the_end_is_caught: [
        ("cancel", "if c.ended and not repeated then", "if false then"),
    ] => [Rule::Ending];

    a_result_that_is_held_and_called_delivered_is_caught: [
        ("accept", "'gate', text(c.gate)", "'gate', text(c.next)"),
    ] => [Rule::Agreement];

    a_result_that_is_held_for_what_is_long_there_is_caught: [
        ("accept", "'gate', text(c.gate)", "'gate', item.sequence > 1 and '1' or text(c.gate)"),
    ] => [Rule::Agreement];

    a_repetition_that_calls_a_delivered_result_held_is_caught: [
        ("accept", "'gate', text(c.gate)", "'gate', replayed == '1' and '1' or text(c.gate)"),
    ] => [Rule::Agreement];

    a_reader_that_is_given_less_is_caught: [
        ("read", "return { 'page'", "
            if NOW % 4 == 0 then table.remove(entries, 1) end
            return { 'page'"),
    ] => [Rule::Reading, Rule::Order];
}
