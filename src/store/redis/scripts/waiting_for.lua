-- Returns the item that a conversation waits for, and since when it holds results. Removes the conversation from the
-- index if it holds nothing or no longer exists. Otherwise read-only.
-- Reply: waiting, state, metadata, item at the gate, time in ms at which the oldest held item was settled (text)
--        not_waiting: the conversation is gone or has ended, nothing is held, or the next step moves the gate
local read = call('HMGET', CONVERSATION, 's', 'c')
local c = conversation(read[1], read[2])
if not c or c.next - c.gate == c.awaiting then
    -- pcall: a full or read-only Redis refuses the write.
    redis.pcall('ZREM', WAITING, REFERENCE)
    return { 'not_waiting' }
end
local since = call('ZSCORE', WAITING, REFERENCE)
if not since or c.ended or NOW >= c.gate_deadline then
    return { 'not_waiting' }
end
return { 'waiting', read[1], c.metadata, call('HGET', CONVERSATION, c.gate), since }
