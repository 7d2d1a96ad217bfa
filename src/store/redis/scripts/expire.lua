-- Times out those of the named items that are due. A stale timer finds nothing to do.
-- ARGV: work_items, separated by spaces
-- Reply: expired, conversation_id (of a live one), timed_out (a line each: work item id, sequence, kind, lateness in ms, traceparent or -),
--        released (optional), dropped_held (of one that was left untouched, once)
local c = load_conversation()
check_kinds()
local timed_out = {}
for id in string.gmatch(A.work_items, '%S+') do
    local item = c and not c.ended and load_item_by_id(id)
    if item and not item.outcome then
        if NOW >= item.deadline then
            time_out(c, item)
            timed_out[#timed_out + 1] = table.concat({
                id, text(item.sequence), item.kind, text(NOW - item.deadline), item.traceparent or '-',
            }, ' ')
        end
    else
        redis.call('ZREM', DEADLINES, A.reference .. '/' .. id)
    end
end
local reply = { 'expired', 'timed_out', table.concat(timed_out, '\n') }
if c and not c.ended then
    release(c)
    save_conversation(c)
    reply[#reply + 1] = 'conversation_id'
    reply[#reply + 1] = c.id
elseif c and not c.ended_at and not c.discounted then
    -- Left untouched, it ended without a step that would have counted it.
    redis.call('HSET', CONVERSATION, 'discounted', '1')
    for _, part in ipairs({ 'conversation_id', c.id, 'dropped_held', text(held(c)) }) do
        reply[#reply + 1] = part
    end
    count_held(c, 0, 0)
end
-- Whatever is held waits for what is awaited. What was lost of the store must not be counted for ever.
if redis.call('ZCARD', DEADLINES) == 0 then
    redis.call('DEL', TOTALS)
end
return with_released(reply)
