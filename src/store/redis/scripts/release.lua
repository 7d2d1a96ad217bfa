-- THE SEQUENCE GATE: settles items and releases them. States the rules of src/domain/gate.rs again, function by function
-- under the same names; tests/it/model.rs binds the two.
local char, concat = string.char, table.concat
local TRACE = ARGV[4]

-- What this step writes to the conversation's hash, the markers and results it removes, what it has settled, and what it
-- tells of the items that it released.
local WRITES, MARKERS, FREED, FRESH, RELEASED = {}, {}, {}, {}, {}
local NOW_TEXT = rfc3339(NOW, date(NOW))

-- Settles an item that nothing has settled, and returns it as it is stored then.
local function settle(c, sequence, item, outcome, received_at, attempt, bytes, request)
    item = char(outcome) .. sub(item, 2)
        .. encode(SETTLEMENT, received_at, attempt, bytes, #request, request, #TRACE, TRACE)
    local n = #WRITES
    WRITES[n + 1], WRITES[n + 2] = sequence, item
    MARKERS[#MARKERS + 1] = REFERENCE .. ':' .. sequence
    FRESH[sequence] = true
    c.awaiting = c.awaiting - 1
    c.held_bytes = c.held_bytes + bytes
    return item
end

-- A step that somebody asked for, and that counts as use of the conversation.
local function touch(c)
    c.touched_at = NOW
    if c.awaiting == 0 then
        c.busy_until = 0
    end
end

local function time_out(c, sequence, item)
    local _, deadline, _, _, _, day = decode(ITEM, item)
    return settle(c, sequence, item, TIMED_OUT, rfc3339(deadline, day), '\0\0\0\0\0\0\0\0', 0, '')
end

-- Writes an item's envelope to the channel, and tells the bytes of its result. Before anything says that it is there: a
-- step that fails in between is repeated as a whole.
local function append(c, sequence, item, payload)
    local outcome, _, _, id, issued_at, _, _, trace, members, at = decode(ITEM, item)
    local received_at, _, bytes, request, settled_in = decode(SETTLEMENT, item, at)
    if settled_in ~= '' then
        trace = settled_in
    end
    if not c.id then
        c.opened_at, _, c.id = decode(FACTS, c.facts)
    end
    local word, result = 'succeeded', ',"result":'
    if outcome == FAILED then
        word, result = 'failed', ',"error":'
    elseif outcome ~= SUCCEEDED then
        word, result = outcome == TIMED_OUT and 'timed_out' or 'cancelled', ''
    end
    if result ~= '' and not payload then
        payload = assert(call('HGET', HELD, sequence), 'a result that was held is not there')
    end
    local envelope = '{"sequence":' .. sequence .. ',"conversationId":"' .. c.id .. '","workItemId":"' .. id .. '",'
        .. members .. ',"outcome":"' .. word .. '"' .. result .. (payload or '') .. ',"issuedAt":"' .. issued_at
        .. '","receivedAt":"' .. received_at .. '","releasedAt":"' .. NOW_TEXT
        .. (request ~= '' and '","requestId":"' .. request or '')
        .. (trace ~= '' and '","traceparent":"' .. trace or '') .. '"}'
    local entry = c.opened_at .. '-' .. sequence
    local added = redis.pcall('XADD', CHANNEL, entry, 'envelope', envelope, 'sequence', sequence, 'outcome', word)
    if added.err then
        -- A step that failed halfway has put it there, and did no more.
        local there = call('XRANGE', CHANNEL, entry, entry)[1]
        assert(there and there[2][1] == 'envelope', added.err)
    end
    c.held_bytes = c.held_bytes - bytes
    c.channel_bytes = c.channel_bytes + bytes
    return bytes
end

-- THE RULE OF THE GATE: beginning with the sequence it waits for, every item that is settled, or whose deadline has
-- passed, is released, up to the first that is neither. A step releases so many items, or bytes, and leaves the rest to
-- the next one: the deadline at the gate is in the past then. `known` has items that were read already, by sequence;
-- `payload` is the result of the item `own`.
local function release(c, known, own, payload)
    local first, bytes = c.gate, 0
    while c.gate < c.next do
        local sequence = c.gate
        local item = known[sequence]
        if not item then
            local names = {}
            for i = 1, math.min(32, c.next - sequence) do
                names[i] = sequence + i - 1
            end
            for i, other in ipairs(call('HMGET', CONVERSATION, unpack(names))) do
                -- What this step has settled is not written yet.
                known[sequence + i - 1] = known[sequence + i - 1] or other
            end
            item = known[sequence]
        end
        local outcome, deadline = decode('>BI6', item)
        if outcome == AWAITING and NOW < deadline then
            c.gate_deadline = deadline
            break
        elseif sequence - first >= $step_items or bytes >= $step_bytes then
            c.gate_deadline = 1
            break
        elseif outcome == AWAITING then
            item = time_out(c, sequence, item)
        end
        bytes = bytes + append(c, sequence, item, sequence == own and payload)
        local n = #RELEASED
        RELEASED[n + 1], RELEASED[n + 2] = sequence == own and '' or item, FRESH[sequence] and 0 or 1
        if not FRESH[sequence] then
            FREED[#FREED + 1] = sequence
        end
        c.gate = sequence + 1
    end
    if c.gate == c.next then
        c.gate_deadline = 0
    end
end

-- Writes what the step has done.
local function save(c)
    keep(c)
    call('HSET', CONVERSATION, 's', state_of(c), unpack(WRITES))
    if c.gate_deadline == 1 then
        -- Whoever took this step goes on at once; should it be gone by then, the sweeper does.
        call('ZADD', TIMERS, NOW + 1000, REFERENCE)
    end
    if #MARKERS > 0 then
        -- A marker that stays settles nothing: the sweeper removes it.
        redis.pcall('ZREM', TIMERS, unpack(MARKERS))
    end
    if #FREED > 0 then
        call('HDEL', HELD, unpack(FREED))
    end
    local held = c.ended and 0 or c.next - c.gate - c.awaiting
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
        -- Readers look again by themselves: a user who may not publish must not stop the step.
        redis.pcall('PUBLISH', CHANNEL, '')
    end
end

-- Whether the next step has something to release.
local function more(c)
    return c.gate_deadline == 1 and 1 or 0
end
