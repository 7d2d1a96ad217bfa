-- Takes a callback: checks, de-duplicates, moves the gate and writes the channel, in one step.
-- ARGV: 4 trace or empty, 5 sequence, 6 the sequence after it, 7 work item id, 8 token's expiry, 9 fingerprint,
--       10 outcome (a number), 11 result, 12 request id, 13 attempt (8 bytes)
-- Reply: taken, replayed 0|1, now, gate, facts, item, more 0|1, then of each item released in this step: it (empty:
--        the one that was taken), was held 0|1
--        token_expired | conversation_ended | work_item_unknown | token_used | work_item_timed_out |
--        work_item_cancelled | held_limit | channel_limit, then facts and item as far as they are known
local USED, ID, FINGERPRINT, PAYLOAD = KEYS[6], ARGV[7], ARGV[9], ARGV[11]
local sequence, expires_at = tonumber(ARGV[5]), tonumber(ARGV[8])
if NOW >= expires_at then
    return { 'token_expired' }
end
local read = call('HMGET', CONVERSATION, 's', 'c', sequence, ARGV[6])
local c, item = conversation(read[1], read[2]), read[3]
if not c then
    return { 'conversation_ended' }
elseif not item or id_of(item) ~= ID then
    return { c.ended and 'conversation_ended' or 'work_item_unknown', c.facts }
end

local outcome = outcome_at(item, NOW)
if outcome ~= AWAITING or c.ended then
    local first = call('GET', USED)
    if c.ended and (not first or sequence >= c.gate) then
        return { 'conversation_ended', c.facts, item }
    elseif outcome == TIMED_OUT then
        return { 'work_item_timed_out', c.facts, item }
    elseif outcome == CANCELLED then
        return { 'work_item_cancelled', c.facts, item }
    elseif first ~= FINGERPRINT then
        return { 'token_used', c.facts, item }
    end
    -- Told what the first was told, and where it is now: what is past its deadline is not waited for.
    if not c.ended and c.gate_deadline > 0 and NOW >= c.gate_deadline then
        -- This write takes no memory: a server that is full takes what follows it in the same script.
        call('PEXPIRE', TIMERS, $partition_ttl)
        release(c, { [sequence] = item })
        save(c)
    end
    local replayed = settled_by(item) == ARGV[13] and 0 or 1
    return { 'taken', replayed, NOW, c.gate, c.facts, item, more(c), unpack(RELEASED) }
end

local bytes = #PAYLOAD
-- The rule of held results: one that is released in the same step is never too much.
if sequence > c.gate and NOW < c.gate_deadline
    and (c.held_before >= $max_held_items or c.held_bytes + bytes > $max_held_bytes) then
    return { 'held_limit', c.facts, item }
elseif c.channel_bytes + c.held_bytes + bytes > $max_channel_bytes then
    return { 'channel_limit', c.facts, item }
end
if not call('SET', USED, FINGERPRINT, 'NX', 'PX', expires_at - NOW + $grace) and call('GET', USED) ~= FINGERPRINT then
    return { 'token_used', c.facts, item }
end
item = settle(c, sequence, item, tonumber(ARGV[10]), NOW_TEXT, ARGV[13], bytes, ARGV[12])
touch(c)
if sequence == c.gate or NOW >= c.gate_deadline then
    release(c, { [sequence] = item, [sequence + 1] = read[4] or nil }, sequence, PAYLOAD)
end
if sequence >= c.gate then
    call('HSET', HELD, sequence, PAYLOAD)
    if c.held_before == 0 then
        call('PEXPIRE', HELD, c.kept_until - NOW)
    end
end
save(c)
return { 'taken', 0, NOW, c.gate, c.facts, item, more(c), unpack(RELEASED) }
