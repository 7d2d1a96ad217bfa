-- Cancels a work item.
-- ARGV: 4 traceparent or empty, 5 sequence, 6 sequence + 1, 7 work item id, 8 request id, 9 attempt (8 bytes),
--       10 reason as a JSON string or empty
-- Reply: cancelled, now, state, metadata, item, then for each item released in this step: item (empty: the cancelled
--        one), held before 0|1
--        work_item_settled, outcome (number in item.lua)
--        conversation_not_found | work_item_not_found | conversation_ended
local sequence = tonumber(ARGV[5])
local read = call('HMGET', CONVERSATION, 's', 'c', ARGV[5], ARGV[6])
local c, item = conversation(read[1], read[2]), read[3]
if not c then
    return { 'conversation_not_found' }
elseif not item or id_of(item) ~= ARGV[7] then
    return { 'work_item_not_found' }
end
local outcome = outcome_at(item, NOW)
-- A retry after a lost reply succeeds again, unless the conversation has since ended and dropped the item.
local repeated = outcome == CANCELLED and settled_by(item) == ARGV[9] and (not c.ended or sequence < c.gate)
if c.ended and not repeated then
    return { 'conversation_ended' }
elseif outcome ~= AWAITING and not repeated then
    return { 'work_item_settled', outcome }
elseif not repeated then
    bypass_maxmemory()
    item = cancel_item(c, sequence, item, ARGV[9], ARGV[8], ARGV[10])
    touch(c)
    if sequence == c.gate or NOW >= c.gate_deadline then
        release(c, { [sequence] = item, [sequence + 1] = read[4] or nil }, sequence)
    end
    save(c)
end
return { 'cancelled', NOW, state_of(c), c.metadata, item, unpack(RELEASED) }
