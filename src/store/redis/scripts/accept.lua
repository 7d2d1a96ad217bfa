-- Accepts a callback: checks it, recognizes replays, settles the item and releases what the gate allows.
-- KEYS: 7 used
-- ARGV: 4 traceparent or empty, 5 sequence, 6 sequence + 1, 7 work item id, 8 expiry of the token in ms,
--       9 fingerprint of the body, 10 outcome (number in item.lua), 11 result, 12 request id, 13 attempt (8 bytes)
-- Reply: accepted, replayed 0|1, now, gate, metadata, item, unfinished 0|1, then for each item released in this
--        step: item (empty: the accepted one), held before this step 0|1
--        token_expired | conversation_ended | work_item_unknown | token_used | work_item_timed_out |
--        work_item_cancelled | held_limit | channel_limit, followed by metadata and item if they are known
local USED, ID, FINGERPRINT, PAYLOAD = KEYS[7], ARGV[7], ARGV[9], ARGV[11]
local sequence, expires_at = tonumber(ARGV[5]), tonumber(ARGV[8])
if NOW >= expires_at then
    return { 'token_expired' }
end
local read = call('HMGET', CONVERSATION, 's', 'c', ARGV[5], ARGV[6])
local c, item = conversation(read[1], read[2]), read[3]
if not c then
    return { 'conversation_ended' }
elseif not item or id_of(item) ~= ID then
    return { c.ended and 'conversation_ended' or 'work_item_unknown', c.metadata }
end

local outcome = outcome_at(item, NOW)
if outcome ~= AWAITING or c.ended then
    local first = call('GET', USED)
    if c.ended and (not first or sequence >= c.gate) then
        return { 'conversation_ended', c.metadata, item }
    elseif outcome == TIMED_OUT then
        return { 'work_item_timed_out', c.metadata, item }
    elseif outcome == CANCELLED then
        return { 'work_item_cancelled', c.metadata, item }
    elseif first ~= FINGERPRINT then
        return { 'token_used', c.metadata, item }
    end
    -- A replay gets the receipt again, with the current gate. Overdue items are released first, because the gate
    -- must not wait for them.
    if not c.ended and c.gate_deadline > 0 and NOW >= c.gate_deadline then
        bypass_maxmemory()
        release(c, { [sequence] = item })
        save(c)
    end
    local replayed = settled_by(item) == ARGV[13] and 0 or 1
    return { 'accepted', replayed, NOW, c.gate, c.metadata, item, unfinished(c), unpack(RELEASED) }
end

local bytes = #PAYLOAD
-- The limits on held results apply only behind an item that is still awaiting. If the item at the gate is overdue,
-- this step moves the gate.
if sequence > c.gate and NOW < c.gate_deadline
    and (c.held_before >= $max_held_items or c.held_bytes + bytes > $max_held_bytes) then
    return { 'held_limit', c.metadata, item }
elseif c.channel_bytes + c.held_bytes + bytes > $max_channel_bytes then
    return { 'channel_limit', c.metadata, item }
end
-- The key can already exist for an awaiting item: an earlier step failed after this SET and before it wrote the state.
if not call('SET', USED, FINGERPRINT, 'NX', 'PX', format('%d', expires_at - NOW + $grace))
    and call('GET', USED) ~= FINGERPRINT then
    return { 'token_used', c.metadata, item }
end
item = settle(c, sequence, item, tonumber(ARGV[10]), NOW_TEXT, ARGV[13], bytes, ARGV[12], '')
touch(c)
if sequence == c.gate or NOW >= c.gate_deadline then
    release(c, { [sequence] = item, [sequence + 1] = read[4] or nil }, sequence, PAYLOAD)
end
if sequence >= c.gate then
    call('HSET', HELD, ARGV[5], PAYLOAD)
    if c.bytes_before == 0 then
        call('PEXPIRE', HELD, c.kept_until - NOW)
    end
end
save(c)
return { 'accepted', 0, NOW, c.gate, c.metadata, item, unfinished(c), unpack(RELEASED) }
