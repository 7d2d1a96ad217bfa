-- Shows a conversation. Changes nothing.
-- ARGV: nothing of its own
-- Reply: conversation, now, id, opened_at, idle_at, next, gate, traceparent (optional), ended_at, dropped_held and
--        dropped_awaiting (once ended); then, each as one list, the items that are not released, in order
--        conversation_not_found
local c = load_conversation()
if not c then
    return { 'conversation_not_found' }
end
local head = {
    'now', text(NOW), 'id', c.id, 'opened_at', text(c.opened_at), 'idle_at', text(c.touched_at + c.idle_ttl),
    'next', text(c.next),
}
if c.traceparent then
    head[#head + 1] = 'traceparent'
    head[#head + 1] = c.traceparent
end
if c.ended then
    local held, awaiting = c.dropped_held, c.dropped_awaiting
    if not c.ended_at then
        held, awaiting = left_behind(c, c.ended)
    end
    for _, pair in ipairs({
        { 'ended_at', c.ended }, { 'dropped_held', held }, { 'dropped_awaiting', awaiting },
    }) do
        head[#head + 1] = pair[1]
        head[#head + 1] = text(pair[2])
    end
end
local reply = { 'conversation', head }
for sequence = c.gate, c.next - 1 do
    local item = load_item(sequence)
    if item then
        reply[#reply + 1] = view(c, item)
    end
end
return reply
