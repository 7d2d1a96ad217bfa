-- Ends a conversation. Ending twice is the same as once.
-- ARGV: nothing of its own
-- Reply: ended, repeated 0|1, ended_at, dropped_held, dropped_awaiting, released (optional)
--        conversation_not_found
local c = load_conversation()
if not c then
    return { 'conversation_not_found' }
end
check_kinds()
local repeated = c.ended and '1' or '0'
local dropped_held, dropped_awaiting = c.dropped_held, c.dropped_awaiting
if not c.ended then
    release(c)
    dropped_held, dropped_awaiting = left_behind(c, NOW)
    for sequence = c.gate, c.next - 1 do
        local id = redis.call('HGET', ITEMS, text(sequence) .. ':id')
        if id then
            redis.call('ZREM', DEADLINES, A.reference .. '/' .. id)
        end
    end
    redis.call('DEL', HELD)
    c.ended_at, c.ended = NOW, NOW
    redis.call('HSET', CONVERSATION, 'ended_at', text(NOW), 'dropped_held', text(dropped_held),
        'dropped_awaiting', text(dropped_awaiting))
    save_conversation(c)
    wake()
elseif not c.ended_at then
    dropped_held, dropped_awaiting = left_behind(c, c.ended)
end
return with_released({
    'ended', 'repeated', repeated, 'ended_at', text(c.ended), 'dropped_held', text(dropped_held),
    'dropped_awaiting', text(dropped_awaiting),
})
