-- Ends a conversation, after what is due by now was released. Ending twice is the same as once.
-- ARGV: 4 trace or empty
-- Reply: ended, now, repeated 0|1, state, facts, then of each item released in this step: it, was held 0|1
--        unfinished, the same: there is more to release, and the conversation goes on; to be asked again
--        conversation_not_found
local read = call('HMGET', CONVERSATION, 's', 'c')
local c = conversation(read[1], read[2])
if not c then
    return { 'conversation_not_found' }
end
local repeated = c.ended and 1 or 0
if c.ended_at == 0 then
    -- This write takes no memory: a server that is full takes what follows it in the same script.
    call('PEXPIRE', TIMERS, $partition_ttl)
    if not c.ended and c.gate_deadline > 0 and NOW >= c.gate_deadline then
        release(c, {})
        if more(c) == 1 then
            save(c)
            return { 'unfinished', NOW, 0, state_of(c), c.facts, unpack(RELEASED) }
        end
    end
    finish(c, c.ended or NOW)
    append_end(c)
    arm(c)
end
return { 'ended', NOW, repeated, state_of(c), c.facts, unpack(RELEASED) }
