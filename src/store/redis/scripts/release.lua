-- THE SEQUENCE GATE: settles and releases items. Implements the rules of src/domain/gate.rs in scripts and
-- functions of the same names; tests/it/model.rs compares the two.
local TRACE = ARGV[4]

-- Collected during the step: fields and values for the conversation's hash, timers to remove, sequences of held
-- results that were released, times (text) of the settlements of this step by sequence, and the last part of the reply
-- (item and held before 0|1, alternating).
local WRITES, OBSOLETE_TIMERS, RELEASED_HELD, JUST_SETTLED, RELEASED = {}, {}, {}, {}, {}
local NOW_TEXT = rfc3339(NOW, date(NOW))

-- Settles an awaiting item. `reason`: a JSON string, or empty. Returns the item's new stored form.
local function settle(c, sequence, item, outcome, received_at, attempt, bytes, request, reason)
    item = item .. encode(SETTLEMENT, received_at, attempt, bytes, #request, request, #TRACE, TRACE)
        .. reason .. char(outcome)
    -- Formatted here, because Redis (in an argument) and Lua (in a concatenation) format a number more slowly.
    local n, field = #WRITES, format('%d', sequence)
    WRITES[n + 1], WRITES[n + 2] = field, item
    OBSOLETE_TIMERS[#OBSOLETE_TIMERS + 1] = REFERENCE .. ':' .. field
    JUST_SETTLED[sequence] = received_at
    c.awaiting = c.awaiting - 1
    c.held_bytes = c.held_bytes + bytes
    return item
end

-- Restarts the idle timeout. The sweeper's steps do not call it.
local function touch(c)
    c.touched_at = NOW
    if c.awaiting == 0 then
        c.busy_until = 0
    end
end

-- Lets the script write even if Redis has reached maxmemory: Redis then refuses a script's first write (OOM), but not
-- the following ones, and it never refuses PEXPIRE.
local function bypass_maxmemory()
    call('PEXPIRE', TIMERS, $partition_ttl)
end

local function time_out(c, sequence, item)
    local times_out_at, _, _, _, day, _, _, _, heartbeat = decode(ITEM, item)
    local missed_heartbeat = heartbeat ~= '' and times_out_at < decode(HEARTBEAT, heartbeat)
    return settle(c, sequence, item, TIMED_OUT, rfc3339(times_out_at, day), '\0\0\0\0\0\0\0\0', 0, '',
        missed_heartbeat and '"heartbeat"' or '')
end

-- Appends an item's envelope to the channel. Returns the size of its result in bytes. If the step fails before `save`
-- has written the state, the whole step is repeated.
local function append(c, sequence, item, payload)
    local _, _, id, issued_at, _, _, trace, members, _, _, at = decode(ITEM, item)
    local received_at, _, bytes, request, settled_in, reason_at = decode(SETTLEMENT, item, at)
    local text = format('%d', sequence)
    if settled_in ~= '' then
        trace = settled_in
    end
    if not c.id then
        c.opened_at, _, c.id = decode(METADATA, c.metadata)
    end
    local outcome, word, result = byte(item, -1), 'succeeded', ',"result":'
    if outcome == FAILED then
        word, result = 'failed', ',"error":'
    elseif outcome ~= SUCCEEDED then
        word, result = outcome == TIMED_OUT and 'timed_out' or 'cancelled', ''
        if reason_at < #item then
            result, payload = ',"reason":', sub(item, reason_at, -2)
        end
    end
    if result ~= '' and not payload then
        payload = call('HGET', HELD, text)
        -- If Redis has evicted the result, or an operator has deleted it, the envelope has none.
        result = payload and result or ''
    end
    local envelope = '{"sequence":' .. text .. ',"conversationId":"' .. c.id .. '","workItemId":"' .. id .. '",'
        .. members .. ',"outcome":"' .. word .. '"' .. result .. (payload or '') .. ',"issuedAt":"' .. issued_at
        .. '","receivedAt":"' .. received_at .. '","releasedAt":"' .. NOW_TEXT
        .. (request ~= '' and '","requestId":"' .. request or '')
        .. (trace ~= '' and '","traceparent":"' .. trace or '') .. '"}'
    local entry = c.opened_at .. '-' .. text
    local added = redis.pcall('XADD', CHANNEL, entry, 'envelope', envelope, 'sequence', text, 'outcome', word)
    if added.err then
        -- The entry exists if an earlier step failed after it had appended it and before it wrote the state.
        local existing = call('XRANGE', CHANNEL, entry, entry)[1]
        assert(existing and existing[2][1] == 'envelope', added.err)
    end
    c.held_bytes = c.held_bytes - bytes
    c.channel_bytes = c.channel_bytes + bytes
    return bytes
end

-- THE GATE RULE: starting at the gate, releases every item that is settled or overdue. Stops at the first that is
-- neither. A step releases a bounded number of items and bytes. If it leaves items for the next step, it sets
-- gate_deadline to 1, a time in the past. `known`: items that have been read, by sequence. `own`: the sequence of the
-- item that the request settled. `payload`: the result of that item, which is not in the held hash.
local function release(c, known, own, payload)
    local first, bytes = c.gate, 0
    while c.gate < c.next do
        local sequence = c.gate
        local item = known[sequence]
        if not item then
            local sequences = {}
            for i = 1, math.min(32, c.next - sequence) do
                sequences[i] = sequence + i - 1
            end
            for i, other in ipairs(call('HMGET', CONVERSATION, unpack(sequences))) do
                -- `known` has precedence: the hash does not contain this step's settlements yet.
                known[sequence + i - 1] = known[sequence + i - 1] or other
            end
            item = known[sequence]
        end
        local outcome, times_out_at = byte(item, -1), decode('>I6', item)
        if outcome == AWAITING and NOW < times_out_at then
            c.gate_deadline = times_out_at
            break
        elseif sequence - first >= $step_items or bytes >= $step_bytes then
            c.gate_deadline = 1
            break
        elseif outcome == AWAITING then
            item = time_out(c, sequence, item)
        end
        bytes = bytes + append(c, sequence, item, sequence == own and payload)
        local n = #RELEASED
        RELEASED[n + 1], RELEASED[n + 2] = sequence == own and '' or item, JUST_SETTLED[sequence] and 0 or 1
        if not JUST_SETTLED[sequence] then
            RELEASED_HELD[#RELEASED_HELD + 1] = sequence
        end
        c.gate = sequence + 1
    end
    if c.gate == c.next then
        c.gate_deadline = 0
    end
end

-- Updates the index of waiting conversations. pcall: no rule depends on the index, and a key of the wrong type must not
-- fail the step. Its helper functions are defined inside it, so that steps that do not need them do not create them.
local function index_waiting(c, held)
    if held == 0 then
        redis.pcall('ZREM', KEYS[6], REFERENCE)
        return
    end

    -- Returns the time (text) at which the oldest held item was settled, and whether all held items were examined: it
    -- reads at most $step_held items. Must be called after the settlements of this step have been written.
    local function held_since()
        local sequences, since, found = {}, nil, 0
        for sequence = c.gate, math.min(c.gate + $step_held, c.next) - 1 do
            sequences[#sequences + 1] = sequence
        end
        for _, item in ipairs(redis.call('HMGET', KEYS[1], unpack(sequences))) do
            if item and item:byte(-1) ~= AWAITING then
                -- The settlement follows, and begins with its time.
                local received_at = struct.unpack('>c24', item, select(11, struct.unpack(ITEM, item)))
                since = since and since < received_at and since or received_at
                found = found + 1
            end
        end
        return since, found == held
    end

    -- Converts the time of a settlement (RFC 3339) to ms. Returns nil if the date table does not contain its day.
    local function ms_of(text)
        local at = DATES:find(text:sub(1, 10), 1, true)
        return at and (FIRST_DAY + (at - 1) / 10) * 86400000 + text:sub(12, 13) * 3600000 + text:sub(15, 16) * 60000
            + text:sub(18, 19) * 1000 + text:sub(21, 23)
    end

    local since, exact = nil, c.held_before == 0
    for sequence, received_at in pairs(JUST_SETTLED) do
        if sequence >= c.gate and not (since and since < received_at) then
            since = received_at
        end
    end
    if #RELEASED_HELD > 0 and c.gate_deadline ~= 1 then
        since, exact = held_since()
    elseif not exact and since == NOW_TEXT then
        -- The results that were already held are older, so the index entry stays.
        return
    end
    local score = since and ms_of(since)
    if score and exact then
        redis.pcall('ZADD', KEYS[6], score, REFERENCE)
    elseif score then
        redis.pcall('ZADD', KEYS[6], 'LT', score, REFERENCE)
    end
    redis.pcall('PEXPIRE', KEYS[6], $partition_ttl)
end

-- Writes the changes of the step.
local function save(c)
    extend_ttl(c)
    call('HSET', CONVERSATION, 's', state_of(c), unpack(WRITES))
    if c.gate_deadline == 1 then
        -- The caller continues immediately. If it fails, the sweeper continues.
        call('ZADD', TIMERS, NOW + $continue_after, REFERENCE)
    end
    if #OBSOLETE_TIMERS > 0 then
        -- pcall: an obsolete timer has no effect, and the sweeper removes it.
        redis.pcall('ZREM', TIMERS, unpack(OBSOLETE_TIMERS))
    end
    if #RELEASED_HELD > 0 then
        call('HDEL', HELD, unpack(RELEASED_HELD))
    end
    local held = c.ended and 0 or c.next - c.gate - c.awaiting
    if held > 0 or c.held_before > 0 then
        index_waiting(c, held)
    end
    if held ~= c.held_before then
        call('HINCRBY', TOTALS, 'held', held - c.held_before)
    end
    local bytes = c.ended and 0 or c.held_bytes
    if bytes ~= c.bytes_before then
        call('HINCRBY', TOTALS, 'held_bytes', bytes - c.bytes_before)
    end
    if c.gate > c.gate_before then
        if c.gate_before <= 1 then
            call('PEXPIRE', CHANNEL, c.kept_until - NOW)
        end
        -- pcall: the Redis user may lack the permission to publish. Readers then find the change by polling.
        redis.pcall('PUBLISH', CHANNEL, '')
    end
end

-- 1 if the step left items to release, otherwise 0.
local function unfinished(c)
    return c.gate_deadline == 1 and 1 or 0
end
