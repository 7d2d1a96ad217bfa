-- A conversation as it is stored.
-- KEYS: 1 conversation  hash: s -> state, c -> facts, <sequence> -> item, k<digest> -> idempotent issue
--       2 channel       stream: one entry an envelope, with the id <opened at>-<sequence>
--       3 timers        sorted set of the partition: <conversation>:<sequence> by deadline, and <conversation> by the
--                       time at which the sweeper has to look at it
--       4 held          hash: sequence -> result that is not released
--       5 totals        hash of the partition: its conversations, and what they hold
--       6 used          string: fingerprint of the body that spent the token (accept only)
local CONVERSATION, CHANNEL, TIMERS, HELD, TOTALS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local REFERENCE = sub(CONVERSATION, -32)
local encode, decode, max = struct.pack, struct.unpack, math.max

-- The state: touched at, idle TTL, last deadline of what is awaited, kept until, ended at, next sequence, gate, awaiting
-- items, held bytes, deadline at the gate, bytes on the channel, markers cleared before, last attempt to issue.
-- Times and durations in ms; 0 for none.
local STATE = '>I6I4I6I6I6I4I4I4I6I6I6I4c12'
-- The facts: opened at, opened by; then, each after its length, the id and the trace.
local FACTS = '>I6c8Bc0Bc0'

-- When the conversation ended, if it has: by command, or by being left untouched.
local function ended_at(c)
    if c.ended_at > 0 then
        return c.ended_at
    end
    local idle_at = max(c.touched_at + c.idle_ttl, c.busy_until)
    return NOW >= idle_at and idle_at
end

-- The conversation of a state and facts, whether somebody can ask for it or not.
local function stored(state, facts)
    local touched_at, idle_ttl, busy_until, kept_until, ended, next, gate, awaiting, held_bytes, gate_deadline,
        channel_bytes, cleared, last_issue = decode(STATE, state)
    local c = {
        touched_at = touched_at, idle_ttl = idle_ttl, busy_until = busy_until, kept_until = kept_until,
        ended_at = ended, next = next, gate = gate, awaiting = awaiting, held_bytes = held_bytes,
        gate_deadline = gate_deadline, channel_bytes = channel_bytes, cleared = cleared, last_issue = last_issue,
        facts = facts, ended = false, gate_before = gate, held_before = next - gate - awaiting,
        bytes_before = held_bytes,
    }
    c.ended = ended_at(c)
    return c
end

-- The conversation; nil when there is none, or when it ended so long ago that nobody can ask for it.
local function conversation(state, facts)
    local c = state and stored(state, facts)
    return c and not (c.ended and NOW >= c.ended + $retention) and c or nil
end

local function state_of(c)
    return encode(STATE, c.touched_at, c.idle_ttl, c.busy_until, c.kept_until, c.ended_at, c.next, c.gate, c.awaiting,
        c.held_bytes, c.gate_deadline, c.channel_bytes, c.cleared, c.last_issue)
end
