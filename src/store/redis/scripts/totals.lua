-- Adds up what the conversations of some partitions hold. Changes nothing. Stands alone.
-- KEYS: timers and totals of each partition in turn
-- Reply: awaiting, held, held bytes
local awaiting, held, held_bytes = 0, 0, 0
for i = 1, #KEYS, 2 do
    -- A key that somebody has spoilt must not stop the others.
    local markers = redis.pcall('ZCARD', KEYS[i])
    local totals = redis.pcall('HMGET', KEYS[i + 1], 'conversations', 'clearing', 'held', 'held_bytes')
    if type(markers) == 'number' and markers > 0 then
        awaiting = awaiting + math.max(markers - (totals[1] or 0) - (totals[2] or 0), 0)
        held = held + math.max(totals[3] or 0, 0)
        held_bytes = held_bytes + math.max(totals[4] or 0, 0)
    end
end
return { awaiting, held, held_bytes }
