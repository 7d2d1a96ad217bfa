-- THE SEQUENCE GATE, for Redis. States the rules of src/domain/gate.rs again, function by function under the
-- same names; tests/it/model.rs binds the two. This file stands before each operation's own.
--
-- KEYS, the same for each operation, all in one slot:
--   1 conversation  hash: the conversation
--   2 items         hash: <sequence>:<field> of each item; <work item id> -> sequence;
--                   key:<idempotency digest> -> <fingerprint>:<sequence>
--   3 held          hash: sequence -> bytes of a result that is not released
--   4 channel       stream: one entry an envelope, with the id <sequence>-0
--   5 deadlines     sorted set of the partition: <conversation>/<work item id> by deadline
--   6 totals        hash of the partition: items held and bytes held by its conversations
--   7 used          string: fingerprint of the body that spent the token (accept only)
-- ARGV: names and values in turn. Common to all:
--   now        milliseconds, or empty: the server's own clock
--   reference  the conversation's reference
--   retention  how long an ended conversation can be read, ms
--   grace      how much longer than its data a key is kept, ms
--   wake       where changes of the channel are published
--   trace      the trace of whatever this step settles (optional)
-- Reply: a word, then names and values in turn.
--
-- Every operation checks first and writes after: a script is not rolled back.

local CONVERSATION, ITEMS, HELD, CHANNEL, DEADLINES, TOTALS, USED = unpack(KEYS)

local A = {}
for i = 1, #ARGV, 2 do
    A[ARGV[i]] = ARGV[i + 1]
end

local function number(text)
    return text and tonumber(text) or nil
end

-- Without an exponent, whatever its size.
local format = string.format
local function text(integer)
    return format('%.0f', integer)
end

local NOW = number(A.now)
if not NOW then
    local time = redis.call('TIME')
    NOW = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- RFC 3339 in UTC with milliseconds. The date follows from the days since 0000-03-01, the start of a year whose
-- leap day comes last. The last one is kept: a result that is not held is received and released at the same time.
local last_ms, last_rfc3339
local function rfc3339(ms)
    if ms == last_ms then
        return last_rfc3339
    end
    local floor = math.floor
    local seconds = floor(ms / 1000)
    local days = floor(seconds / 86400)
    local second = seconds - days * 86400
    local z = days + 719468
    local era = floor(z / 146097)
    local day_of_era = z - era * 146097
    local year_of_era = floor(
        (day_of_era - floor(day_of_era / 1460) + floor(day_of_era / 36524) - floor(day_of_era / 146096)) / 365
    )
    local day_of_year = day_of_era - (365 * year_of_era + floor(year_of_era / 4) - floor(year_of_era / 100))
    local shifted_month = floor((5 * day_of_year + 2) / 153)
    local day = day_of_year - floor((153 * shifted_month + 2) / 5) + 1
    local month = shifted_month < 10 and shifted_month + 3 or shifted_month - 9
    local year = year_of_era + era * 400 + (month <= 2 and 1 or 0)
    last_ms = ms
    last_rfc3339 = format('%04d-%02d-%02dT%02d:%02d:%02d.%03dZ', year, month, day,
        floor(second / 3600), floor(second / 60) % 60, second % 60, ms - seconds * 1000)
    return last_rfc3339
end

-- When the conversation ended, if it has: by command, or by being left untouched.
local function ended_at(c)
    if c.ended_at then
        return c.ended_at
    end
    local idle_at = c.touched_at + c.idle_ttl
    return NOW >= idle_at and idle_at or nil
end

-- Items that are settled and not released.
local function held(c)
    return c.next - c.gate - c.awaiting
end

-- The conversation; nil when it is not there, or ended so long ago that nobody can ask for it any more.
local function load_conversation()
    local v = redis.call('HMGET', CONVERSATION, 'id', 'touched_at', 'idle_ttl', 'ended_at', 'next', 'gate',
        'awaiting', 'held_bytes', 'traceparent', 'opened_by', 'opened_at', 'dropped_held', 'dropped_awaiting',
        'kept_until', 'discounted')
    if not v[1] then
        return nil
    end
    local c = {
        id = v[1], touched_at = number(v[2]), idle_ttl = number(v[3]), ended_at = number(v[4]),
        next = number(v[5]), gate = number(v[6]), awaiting = number(v[7]), held_bytes = number(v[8]),
        traceparent = v[9] or nil, opened_by = v[10], opened_at = number(v[11]),
        dropped_held = number(v[12]), dropped_awaiting = number(v[13]), kept_until = number(v[14]),
        discounted = v[15],
    }
    c.counted_items, c.counted_bytes = held(c), c.held_bytes
    c.ended = ended_at(c)
    if c.ended and NOW >= c.ended + number(A.retention) then
        return nil
    end
    return c
end

-- Lets a key of the partition live at least so long.
local function prolong(key, ttl)
    if redis.call('PTTL', key) < ttl then
        redis.call('PEXPIRE', key, text(ttl))
    end
end

-- Counts in the partition's totals what this step has changed of what the conversation holds: now so many items and
-- bytes.
local function count_held(c, items, bytes)
    local more_items, more_bytes = items - (c.counted_items or 0), bytes - (c.counted_bytes or 0)
    if more_items ~= 0 then
        redis.call('HINCRBY', TOTALS, 'held', text(more_items))
    end
    if more_bytes ~= 0 then
        redis.call('HINCRBY', TOTALS, 'held_bytes', text(more_bytes))
    end
    if more_items ~= 0 or more_bytes ~= 0 then
        prolong(TOTALS, c.kept_until - NOW)
    end
    c.counted_items, c.counted_bytes = items, bytes
end

-- A step that found a spoilt key halfway would leave half of its work. The other keys are read before anything is
-- written anyhow.
local function check_kinds()
    redis.call('HLEN', HELD)
    redis.call('XLEN', CHANNEL)
    redis.call('ZCARD', DEADLINES)
    redis.call('HLEN', TOTALS)
end

-- Whether a key may be new in this step, and has no time to live yet.
local GROWN = false

-- Saves the conversation, and lets each of its keys live as long as its data can be asked for, and longer: at least
-- half the grace, at most all of it. The partition's deadlines live as long as any conversation that has some: nobody
-- may sweep for long, and then somebody does.
local function save_conversation(c)
    local asked_for = (c.ended_at or (c.touched_at + c.idle_ttl)) + number(A.retention)
    local grace = number(A.grace)
    local kept = c.kept_until and c.kept_until >= asked_for + grace / 2 and c.kept_until <= asked_for + grace
    if not kept then
        c.kept_until = asked_for + grace
    end
    redis.call('HSET', CONVERSATION, 'touched_at', text(c.touched_at), 'next', text(c.next),
        'gate', text(c.gate), 'awaiting', text(c.awaiting), 'held_bytes', text(c.held_bytes),
        'kept_until', text(c.kept_until))
    if not kept or GROWN then
        local ttl = text(c.kept_until - NOW)
        redis.call('PEXPIRE', CONVERSATION, ttl)
        redis.call('PEXPIRE', ITEMS, ttl)
        redis.call('PEXPIRE', HELD, ttl)
        redis.call('PEXPIRE', CHANNEL, ttl)
        prolong(DEADLINES, c.kept_until - NOW)
    end
    if c.ended then
        count_held(c, 0, 0)
    else
        count_held(c, held(c), c.held_bytes)
    end
end

-- Fields of an item: those fixed at its issue, then those of its settlement.
local ITEM_FIELDS = {
    'id', 'kind', 'issued_at', 'deadline', 'expires_at', 'key_id', 'turn_id', 'traceparent',
    'outcome', 'received_at', 'request_id', 'attempt', 'bytes', 'trace',
}

local function load_item(sequence)
    local names = {}
    local prefix = text(sequence) .. ':'
    for i, field in ipairs(ITEM_FIELDS) do
        names[i] = prefix .. field
    end
    local v = redis.call('HMGET', ITEMS, unpack(names))
    if not v[1] then
        return nil
    end
    local item = { sequence = sequence }
    for i, field in ipairs(ITEM_FIELDS) do
        item[field] = v[i] or nil
    end
    item.deadline = number(item.deadline)
    return item
end

local function load_item_by_id(id)
    local sequence = redis.call('HGET', ITEMS, id)
    return sequence and load_item(number(sequence)) or nil
end

-- The rule of deadlines: an item that nothing has settled is timed out from its deadline on, swept or not.
local function outcome_at(item, now)
    if item.outcome then
        return item.outcome, number(item.received_at)
    elseif now >= item.deadline then
        return 'timed_out', item.deadline
    end
    return nil
end

-- What this step has settled, by sequence.
local FRESH = {}

-- Settles an item that nothing has settled: outcome, received_at, and whatever else is known of the settlement.
local function settle(c, item, settlement)
    local prefix = text(item.sequence) .. ':'
    local fields = {}
    settlement.trace = A.trace
    for field, value in pairs(settlement) do
        item[field] = value
        if field ~= 'payload' then
            fields[#fields + 1] = prefix .. field
            fields[#fields + 1] = value
        end
    end
    redis.call('HSET', ITEMS, unpack(fields))
    redis.call('ZREM', DEADLINES, A.reference .. '/' .. item.id)
    FRESH[item.sequence] = true
    c.awaiting = c.awaiting - 1
    c.held_bytes = c.held_bytes + (number(item.bytes) or 0)
end

local function time_out(c, item)
    settle(c, item, { outcome = 'timed_out', received_at = text(item.deadline) })
end

-- What this step puts on the channel, a line each, in the order of Released in src/domain/gate/commands.rs; a longer
-- chain is released all the same.
local RELEASED = {}
local MOST_TOLD = 256

-- Writes an item's envelope to the channel.
local function append(c, item)
    local envelope = {
        'sequence', text(item.sequence), 'conversationId', c.id, 'workItemId', item.id,
        'kind', item.kind, 'outcome', item.outcome, 'issuedAt', rfc3339(number(item.issued_at)),
        'receivedAt', rfc3339(number(item.received_at)), 'releasedAt', rfc3339(NOW),
    }
    local function add(name, value)
        if value then
            envelope[#envelope + 1] = name
            envelope[#envelope + 1] = value
        end
    end
    add('turnId', item.turn_id)
    add('requestId', item.request_id)
    add('traceparent', item.trace or item.traceparent)
    if item.bytes then
        local payload = item.payload or redis.call('HGET', HELD, text(item.sequence))
        add(item.outcome == 'failed' and 'error' or 'result', payload)
        c.held_bytes = c.held_bytes - number(item.bytes)
    end
    redis.call('XADD', CHANNEL, text(item.sequence) .. '-0', unpack(envelope))
    if item.bytes and not item.payload then
        redis.call('HDEL', HELD, text(item.sequence))
    end
    GROWN = GROWN or item.sequence == 1
    if #RELEASED < MOST_TOLD then
        RELEASED[#RELEASED + 1] = table.concat({
            text(item.sequence), item.id, item.kind, item.outcome, text(number(item.issued_at)),
            text(number(item.received_at)), text(NOW), FRESH[item.sequence] and '0' or '1',
            item.traceparent or '-', item.trace or '-',
        }, ' ')
    end
end

-- Wakes the channel's readers. What is refused here, for want of a permission, must not stop a step halfway: readers
-- look again by themselves.
local function wake()
    redis.pcall('PUBLISH', A.wake, '')
end

-- THE RULE OF THE GATE: beginning with the sequence it waits for, every item that is settled, or whose deadline has
-- passed, is released, up to the first that is neither. `fresh` is an item settled in this step, its result in hand.
local function release(c, fresh)
    local before = c.gate
    while c.gate < c.next do
        local item = fresh and fresh.sequence == c.gate and fresh
        if not item then
            -- Most often the next one is not settled: a look at it is cheaper than all of it.
            local prefix = text(c.gate) .. ':'
            local seen = redis.call('HMGET', ITEMS, prefix .. 'outcome', prefix .. 'deadline')
            if not seen[1] and (not seen[2] or NOW < number(seen[2])) then
                break
            end
            item = load_item(c.gate)
        end
        if not item.outcome then
            if NOW < item.deadline then
                break
            end
            time_out(c, item)
        end
        append(c, item)
        c.gate = c.gate + 1
    end
    if fresh and fresh.payload and fresh.sequence >= c.gate then
        redis.call('HSET', HELD, text(fresh.sequence), fresh.payload)
        GROWN = true
    end
    if c.gate > before then
        wake()
    end
end

-- What is dropped when the conversation ends at this time: held, awaiting.
local function left_behind(c, time)
    local settled, awaiting = 0, 0
    for sequence = c.gate, c.next - 1 do
        local item = load_item(sequence)
        if item and outcome_at(item, time) then
            settled = settled + 1
        elseif item then
            awaiting = awaiting + 1
        end
    end
    return settled, awaiting
end

-- An item as names and values in turn.
local function describe(item, reply)
    reply = reply or {}
    for _, field in ipairs(ITEM_FIELDS) do
        local value = item[field]
        if value then
            reply[#reply + 1] = field
            reply[#reply + 1] = type(value) == 'number' and text(value) or value
        end
    end
    reply[#reply + 1] = 'sequence'
    reply[#reply + 1] = text(item.sequence)
    return reply
end

-- A reply that tells what this step put on the channel.
local function with_released(reply)
    if #RELEASED > 0 then
        reply[#reply + 1] = 'released'
        reply[#reply + 1] = table.concat(RELEASED, '\n')
    end
    return reply
end

-- An item as it stands: where it is on its way, and how it was settled.
local function view(c, item)
    local outcome, received_at = outcome_at(item, c.ended or NOW)
    item.outcome, item.received_at = outcome, received_at
    local state
    if item.sequence < c.gate then
        state = 'released'
    elseif c.ended then
        state = 'dropped'
    else
        state = outcome and 'held' or 'awaiting'
    end
    return describe(item, { 'state', state })
end
