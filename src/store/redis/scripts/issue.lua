-- Issues the next work item.
-- ARGV: work_item, kind, timeout, replay_window, key_id, turn_id (optional), traceparent (optional),
--       request_traceparent (optional), idempotency (optional), fingerprint (with idempotency), max_awaiting_items, max_channel_length
-- Reply: issued, repeated 0|1, the item
--        conversation_not_found | conversation_ended | idempotency_conflict | awaiting_limit | channel_limit
local c = load_conversation()
if not c then
    return { 'conversation_not_found' }
end
check_kinds()
-- An attempt whose answer was lost is told what it did, whatever came after it.
local same = load_item_by_id(A.work_item)
if same then
    return describe(same, { 'issued', 'repeated', '0' })
end
if c.ended then
    return { 'conversation_ended' }
end
local known = A.idempotency and redis.call('HGET', ITEMS, 'key:' .. A.idempotency)
if known then
    local fingerprint, sequence = string.match(known, '^(%x+):(%d+)$')
    local item = load_item(number(sequence))
    if item then
        if fingerprint ~= A.fingerprint then
            return { 'idempotency_conflict' }
        end
        return describe(item, { 'issued', 'repeated', '1' })
    end
end
if c.awaiting >= number(A.max_awaiting_items) then
    return { 'awaiting_limit' }
end
if c.next > number(A.max_channel_length) then
    return { 'channel_limit' }
end

local deadline = NOW + number(A.timeout)
local item = {
    sequence = c.next, id = A.work_item, kind = A.kind, issued_at = text(NOW), deadline = text(deadline),
    expires_at = text(deadline + number(A.replay_window)), key_id = A.key_id, turn_id = A.turn_id,
    traceparent = A.traceparent or c.traceparent or A.request_traceparent,
}
local fields = { item.id, text(item.sequence) }
for _, field in ipairs(ITEM_FIELDS) do
    if item[field] then
        fields[#fields + 1] = text(item.sequence) .. ':' .. field
        fields[#fields + 1] = item[field]
    end
end
if A.idempotency then
    fields[#fields + 1] = 'key:' .. A.idempotency
    fields[#fields + 1] = A.fingerprint .. ':' .. text(item.sequence)
end
redis.call('HSET', ITEMS, unpack(fields))
redis.call('ZADD', DEADLINES, item.deadline, A.reference .. '/' .. item.id)
c.next = c.next + 1
c.awaiting = c.awaiting + 1
c.touched_at = NOW
GROWN = true
save_conversation(c)
return describe(item, { 'issued', 'repeated', '0' })
