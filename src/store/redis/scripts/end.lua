-- Releases what the gate allows, then ends a conversation. Idempotent.
-- ARGV: 4 traceparent or empty, 5 reason as a JSON string or empty
-- Reply: ended, now, already ended 0|1, state, metadata, reason of the end as a JSON string or empty, then for each
--        item released: item, held before 0|1
--        unfinished, then the same fields: the limit of a step was reached and the conversation is still open; the
--        caller repeats the call
--        conversation_not_found
local read = call('HMGET', CONVERSATION, 's', 'c', 'r')
local c = conversation(read[1], read[2])
if not c then
    return { 'conversation_not_found' }
end
local repeated, reason = c.ended and 1 or 0, read[3] or ''
if c.ended_at == 0 then
    bypass_maxmemory()
    if not c.ended and c.gate_deadline > 0 and NOW >= c.gate_deadline then
        release(c, {})
        if unfinished(c) == 1 then
            save(c)
            return { 'unfinished', NOW, 0, state_of(c), c.metadata, '', unpack(RELEASED) }
        end
    end
    if repeated == 0 and ARGV[5] ~= '' then
        reason = ARGV[5]
        WRITES[#WRITES + 1] = 'r'
        WRITES[#WRITES + 1] = reason
    end
    finish(c, c.ended or NOW)
    append_end(c, reason)
    set_timer(c)
end
return { 'ended', NOW, repeated, state_of(c), c.metadata, reason, unpack(RELEASED) }
