//! Tests of the checker: it must detect each of these broken stores. The proxy to Redis replaces scripts of the
//! unchanged service.

use std::sync::Arc;

use crate::checker::Rule;
use crate::deployment::{Deployment, Kind};
use crate::exchange::{Change, exchanged};
use crate::run::Batch;

/// Histories per batch, and the maximum number of batches. Most violations are found in the first batch; some occur
/// only just before an end.
const AT_ONCE: usize = 12;
const BATCHES: u64 = 8;

/// Runs histories on a store with these changes until one violates one of these rules.
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
        // A reply that the store was unavailable does not count: Redis can be too slow on a busy machine.
        let others: Vec<_> =
            done.verdict.violations.iter().filter(|violation| violation.rule != Rule::Available).collect();
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
    token_spent_too_early_is_caught: [
        ("accept", "if not call('SET', USED", "
            if NOW % 4 == 0 then
                call('SET', USED, FINGERPRINT, 'NX', 'PX', 60000)
                return redis.error_reply('BUSY crashed')
            end
            if not call('SET', USED"),
    ] => [Rule::Reply];

    overtaking_result_is_caught: [
        ("accept", "    call('HSET', HELD, ARGV[5], PAYLOAD)\n", "
            append(c, sequence, item, PAYLOAD)
            call('HSET', HELD, sequence, 'sent')\n"),
        ("release", "local function append(c, sequence, item, payload)\n", "
            local function append(c, sequence, item, payload)
            if not payload and call('HGET', HELD, sequence) == 'sent' then return 0 end\n"),
        ("release", "c.opened_at .. '-' .. text\n", "c.opened_at .. '-' .. (call('XLEN', CHANNEL) + 1)\n"),
    ] => [Rule::Order];

    skipped_gap_is_caught: [
        ("accept", "touch(c)\n", "touch(c)
            c.gate = max(c.gate, sequence)\n"),
    ] => [Rule::Order];

    result_accepted_after_its_deadline_is_caught: [
        ("item", "now >= decode('>I6', item) then", "now >= decode('>I6', item) + 100 then"),
        ("release", "if outcome == AWAITING and NOW < times_out_at then", "
            if outcome == AWAITING and NOW < times_out_at + 100 then"),
    ] => [Rule::Deadline];

    lost_deadline_is_caught: [
        ("issue", "call('ZADD', TIMERS, times_out_at,", "call('ZREM', TIMERS,"),
    ] => [Rule::Deadline];

    ignored_heartbeat_is_caught: [
        ("heartbeat", "times_out_at = math.min(NOW + timeout, deadline)", "times_out_at = times_out_at"),
    ] => [Rule::Deadline, Rule::Reply];

    silence_without_a_timeout_is_caught: [
        ("issue", "times_out_at = math.min(NOW + heartbeat_timeout, deadline)", "times_out_at = deadline"),
    ] => [Rule::Deadline];

    heartbeat_that_moves_the_deadline_is_caught: [
        ("heartbeat", "times_out_at = math.min(NOW + timeout, deadline)", "times_out_at = NOW + timeout"),
    ] => [Rule::Deadline, Rule::Reply, Rule::Agreement, Rule::Ending];

    heartbeat_after_a_cancellation_is_caught: [
        ("heartbeat", "elseif outcome == CANCELLED then", "elseif false then"),
        ("heartbeat", "elseif has_result then", "elseif has_result or outcome == CANCELLED then"),
    ] => [Rule::Reply];

    cancellation_of_a_settled_item_is_caught: [
        ("cancel", "local outcome = outcome_at(item, NOW)\n", "
            local outcome = byte(item, -1)
            if outcome ~= AWAITING and outcome ~= CANCELLED then
                item = sub(item, 1, select(11, decode(ITEM, item)) - 1)
                c.awaiting = c.awaiting + 1
                outcome = AWAITING
            end\n"),
    ] => [Rule::Reply];

    repetition_delivered_again_is_caught: [
        ("accept", "    local replayed = settled_by", "
            item = sub(item, 1, select(11, decode(ITEM, item)) - 1)
            c.awaiting = c.awaiting + 1
            end
            if c.ended then
            local replayed = settled_by"),
    ] => [Rule::OneWinner];

    repetition_reported_as_first_is_caught: [
        ("accept", "settled_by(item) == ARGV[13] and 0 or 1", "0"),
    ] => [Rule::OneWinner];

    other_body_taken_for_a_repetition_is_caught: [
        ("accept", "elseif first ~= FINGERPRINT then", "elseif false then"),
    ] => [Rule::OneWinner];

    item_left_out_of_a_cancelled_turn_is_caught: [
        ("cancel_turn", "if outcome_at(item, NOW) == AWAITING and not c.ended then", "
            if outcome_at(item, NOW) == AWAITING and not c.ended and sequence % 2 == 1 then"),
    ] => [Rule::Reply];

    cancellation_of_another_turn_is_caught: [
        ("cancel_turn", "if sub(select(8, decode(ITEM, item)), 1, #MEMBERS) == MEMBERS then", "if true then"),
    ] => [Rule::Uncalled];

    lost_held_result_is_caught: [
        ("accept", "call('HSET', HELD, ARGV[5], PAYLOAD)", "call('HSET', HELD, ARGV[5], 'null')"),
    ] => [Rule::Bytes];

    rewritten_result_is_caught: [
        ("accept", "local sequence, expires_at", "PAYLOAD = string.gsub(PAYLOAD, ' ', '')
            local sequence, expires_at"),
    ] => [Rule::Bytes];

    ignored_idempotency_key_is_caught: [
        ("issue", "conversation(read[1], read[2]), read[3]", "conversation(read[1], read[2]), nil"),
    ] => [Rule::Idempotency];

    acknowledgement_before_the_write_is_caught: [
        ("accept", "touch(c)\n", "
            if NOW % 4 == 0 then
                call('HSET', CONVERSATION, sequence, item)
                call('ZREM', TIMERS, REFERENCE .. ':' .. sequence)
                return { 'accepted', 0, NOW, c.gate, c.metadata, item, 0 }
            end
            touch(c)\n"),
    ] => [Rule::Lost, Rule::Bytes, Rule::Deadline];

    refused_result_that_is_delivered_is_caught: [
        ("accept", "return { 'accepted', 0, NOW, c.gate", "
            if NOW % 4 == 0 then return redis.error_reply('BUSY later') end
            return { 'accepted', 0, NOW, c.gate"),
    ] => [Rule::Uncalled];

    envelope_in_another_conversation_is_caught: [
        ("release", "'XADD', CHANNEL,", "'XADD', call('GETSET', 'last', CHANNEL) or CHANNEL,"),
        ("release", "if added.err then", "if false then"),
    ] => [Rule::Order, Rule::Crossed];

    end_without_effect_is_caught: [
        ("end", "    finish(c, c.ended or NOW)\n    append_end(c, reason)\n    set_timer(c)\n", "    save(c)\n    c.ended_at = NOW\n"),
    ] => [Rule::Ending];

    end_that_drops_a_timeout_is_caught: [
        ("issue", "call('ZADD', TIMERS, times_out_at,", "call('ZADD', TIMERS, times_out_at + 1000,"),
        ("end", "if not c.ended and c.gate_deadline > 0 and NOW >= c.gate_deadline then", "if false then"),
    ] => [Rule::Ending];

    end_that_drops_a_cancellation_is_caught: [
        // It is due at once for whatever comes next, and for the sweeper later.
        ("cancel", "        release(c, { [sequence] = item, [sequence + 1] = read[4] or nil }, sequence)\n", "
            c.gate_deadline = NOW\n"),
        ("cancel", "    save(c)\n", "    save(c)
            call('ZADD', TIMERS, NOW + 800, REFERENCE .. ':' .. sequence)\n"),
        ("end", "if not c.ended and c.gate_deadline > 0 and NOW >= c.gate_deadline then", "if false then"),
    ] => [Rule::Ending];

    cancellation_after_the_end_is_caught: [
        ("cancel", "if c.ended and not repeated then", "if false then"),
        ("cancel", "    touch(c)\n", "
            if c.ended then
                call('HSET', CONVERSATION, sequence, item)
                return { 'cancelled', NOW, state_of(c), c.metadata, item }
            end
            touch(c)\n"),
    ] => [Rule::Ending];

    held_result_reported_as_delivered_is_caught: [
        ("accept", "replayed, NOW, c.gate,", "replayed, NOW, c.next,"),
        ("accept", "'accepted', 0, NOW, c.gate,", "'accepted', 0, NOW, c.next,"),
    ] => [Rule::Agreement];

    needlessly_held_result_is_caught: [
        ("accept", "replayed, NOW, c.gate,", "replayed, NOW, sequence > 1 and 1 or c.gate,"),
        ("accept", "'accepted', 0, NOW, c.gate,", "'accepted', 0, NOW, sequence > 1 and 1 or c.gate,"),
    ] => [Rule::Agreement];

    delivered_result_reported_as_held_is_caught: [
        ("accept", "replayed, NOW, c.gate,", "replayed, NOW, 1,"),
    ] => [Rule::Agreement];

    incomplete_stream_is_caught: [
        ("read", "return { 'page'", "
            if NOW % 4 == 0 then table.remove(envelopes, 1) end
            return { 'page'"),
    ] => [Rule::Reading, Rule::Order];

    bounded_release_that_skips_an_item_is_caught: [
        ("release", "sequence - first >= $step_items or bytes >= $step_bytes then\n", "sequence - first >= 1 then
            c.gate = sequence + 1\n"),
    ] => [Rule::Order];

    bounded_release_that_repeats_an_item_is_caught: [
        ("release", "$step_items", "1"),
        ("expire", "    if c.gate_deadline > 0 and", "    if c.gate_deadline == 1 then c.gate = c.gate - 1 end
            if c.gate_deadline > 0 and"),
        // An entry that is there already would stay as it is.
        ("release", "c.opened_at .. '-' .. text\n", "c.opened_at .. '-' .. (call('XLEN', CHANNEL) + 1)\n"),
    ] => [Rule::Order];
}
