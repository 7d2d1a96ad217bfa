-- Adds up what the conversations of some partitions hold. Changes nothing. Stands alone, without gate.lua.
-- KEYS: deadlines and totals of each partition in turn
-- Reply: awaiting, held, held_bytes
local awaiting, held, held_bytes = 0, 0, 0
for i = 1, #KEYS, 2 do
    -- A key that somebody has spoilt must not stop the others.
    local waiting = redis.pcall('ZCARD', KEYS[i])
    local totals = redis.pcall('HMGET', KEYS[i + 1], 'held', 'held_bytes')
    -- Whatever is held waits for what is awaited.
    if type(waiting) == 'number' and waiting > 0 then
        awaiting = awaiting + waiting
        held = held + math.max(tonumber(totals[1]) or 0, 0)
        held_bytes = held_bytes + math.max(tonumber(totals[2]) or 0, 0)
    end
end
return { string.format('%.0f', awaiting), string.format('%.0f', held), string.format('%.0f', held_bytes) }
