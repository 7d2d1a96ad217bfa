-- Opens a conversation, or touches one that is open.
-- ARGV: id, idle_ttl (optional), default_idle_ttl, traceparent (optional), attempt
-- Reply: opened, created 0|1
--        conversation_ended
local c = load_conversation()
if not c then
    redis.call('DEL', CONVERSATION, ITEMS, HELD, CHANNEL)
    c = {
        touched_at = NOW, idle_ttl = number(A.idle_ttl or A.default_idle_ttl), next = 1, gate = 1,
        awaiting = 0, held_bytes = 0, traceparent = A.traceparent, opened_by = A.attempt,
    }
    redis.call('HSET', CONVERSATION, 'id', A.id, 'opened_by', A.attempt, 'opened_at', text(NOW))
elseif c.ended then
    return { 'conversation_ended' }
else
    c.touched_at = NOW
    c.idle_ttl = number(A.idle_ttl) or c.idle_ttl
    c.traceparent = A.traceparent or c.traceparent
end
redis.call('HSET', CONVERSATION, 'idle_ttl', text(c.idle_ttl))
if c.traceparent then
    redis.call('HSET', CONVERSATION, 'traceparent', c.traceparent)
end
save_conversation(c)
return { 'opened', 'created', c.opened_by == A.attempt and '1' or '0' }
