-- The stored form of a conversation.
-- KEYS: 1 conversation  hash: s -> state, c -> metadata, <sequence> -> item, k<digest of an idempotency
--                       key> -> fingerprint of the request (16 bytes) and sequence, r -> reason of the end (a JSON
--                       string)
--       2 channel       stream: one entry per envelope, with the id <opened at>-<sequence>; at the end, one more entry
--       3 timers        sorted set of the partition: <conversation>:<sequence>, scored by the time at which the item
--                       times out, or by an earlier one, because a heartbeat does not move the timer; and
--                       <conversation>, scored by the time at which the sweeper next processes it as a whole
--       4 held          hash: sequence -> held result (accepted, not yet released)
--       5 totals        hash of the partition: conversations, clearing (timers of ended conversations), held,
--                       held_bytes
--       6 waiting       sorted set of the partition: <conversation>, scored by the time at which the oldest of its held
--                       items was settled; only conversations with held items
--       7 used          string: fingerprint of the body with which the token was used (accept.lua only)
local CONVERSATION, CHANNEL, TIMERS, HELD, TOTALS, WAITING = unpack(KEYS, 1, 6)
local REFERENCE = sub(CONVERSATION, -32)
local encode, decode, max = struct.pack, struct.unpack, math.max

-- State. Times and durations in ms, 0 for none:
--   touched_at     last use: the last step that restarted the idle timeout
--   idle_ttl       idle timeout
--   busy_until     latest deadline of any item; reset to 0 when the conversation is used and no item is awaiting
--   kept_until     time at which the keys expire in Redis
--   ended_at       recorded end; still 0 after the idle timeout until a step records the end
--   next           sequence of the next item to be issued
--   gate           first sequence that is not released
--   awaiting       number of items without an outcome
--   held_bytes     bytes of the held results
--   gate_deadline  time at which the item at the gate times out; 1 if a bounded step left items to release; 0 if there
--                  is no item at the gate
--   channel_bytes  bytes of the results on the channel
--   cleared        after the end: the first sequence whose timer is not removed yet
--   last_issue     first 12 bytes of the last issued item's id, in binary form
local STATE = '>I6I4I6I6I6I4I4I4I6I6I6I4c12'
-- Metadata: opened at (ms, as text), attempt that opened it; then, each preceded by its length, conversation id and
-- traceparent.
local METADATA = '>c13c8Bc0Bc0'

-- The time at which the idle timeout ends the conversation unless it is used before then.
local function idle_at(c)
    return max(c.touched_at + c.idle_ttl, c.busy_until)
end

-- The time at which a step or the idle timeout ended the conversation; false if it has not ended.
local function ended_at(c)
    if c.ended_at > 0 then
        return c.ended_at
    elseif c.gate_deadline == 1 then
        -- The items that a bounded step left unreleased must be released first.
        return false
    end
    local time = idle_at(c)
    return NOW >= time and time
end

-- Decodes a conversation, even if its retention is over.
local function stored(state, metadata)
    local touched_at, idle_ttl, busy_until, kept_until, ended, next, gate, awaiting, held_bytes, gate_deadline,
        channel_bytes, cleared, last_issue = decode(STATE, state)
    local c = {
        touched_at = touched_at, idle_ttl = idle_ttl, busy_until = busy_until, kept_until = kept_until,
        ended_at = ended, next = next, gate = gate, awaiting = awaiting, held_bytes = held_bytes,
        gate_deadline = gate_deadline, channel_bytes = channel_bytes, cleared = cleared, last_issue = last_issue,
        metadata = metadata, ended = false, gate_before = gate, held_before = next - gate - awaiting,
        bytes_before = held_bytes,
    }
    if ended > 0 then
        -- The step that recorded the end has subtracted the held results from the totals.
        c.held_before, c.bytes_before = 0, 0
    end
    c.ended = ended_at(c)
    return c
end

-- Decodes a conversation; nil if it does not exist or its retention is over. Its keys can outlive the retention.
local function conversation(state, metadata)
    local c = state and stored(state, metadata)
    return c and not (c.ended and NOW >= c.ended + $retention) and c or nil
end

local function state_of(c)
    return encode(STATE, c.touched_at, c.idle_ttl, c.busy_until, c.kept_until, c.ended_at, c.next, c.gate, c.awaiting,
        c.held_bytes, c.gate_deadline, c.channel_bytes, c.cleared, c.last_issue)
end
