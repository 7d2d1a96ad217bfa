-- Adds up the totals of some partitions. Read-only. Does not use clock.lua and conversation.lua.
-- KEYS: timers and totals of each partition, alternating
-- Reply: awaiting, held, held bytes
local awaiting, held, held_bytes = 0, 0, 0
for i = 1, #KEYS, 2 do
    -- pcall: a key of the wrong type must not stop the other partitions.
    local timers = redis.pcall('ZCARD', KEYS[i])
    local totals = redis.pcall('HMGET', KEYS[i + 1], 'conversations', 'clearing', 'held', 'held_bytes')
    if type(timers) == 'number' and timers > 0 then
        awaiting = awaiting + math.max(timers - (totals[1] or 0) - (totals[2] or 0), 0)
        held = held + math.max(totals[3] or 0, 0)
        held_bytes = held_bytes + math.max(totals[4] or 0, 0)
    end
end
return { awaiting, held, held_bytes }
