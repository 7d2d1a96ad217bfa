-- Adds up what the conversations of some partitions hold. Changes nothing. Stands alone, without gate.lua.
-- KEYS: deadlines and totals of each partition in turn
-- Reply: awaiting, held, held_bytes
local awaiting, held, held_bytes = 0, 0, 0
for i = 1, #KEYS, 2 do
    awaiting = awaiting + redis.call('ZCARD', KEYS[i])
    local totals = redis.call('HMGET', KEYS[i + 1], 'held', 'held_bytes')
    held = held + (tonumber(totals[1]) or 0)
    held_bytes = held_bytes + (tonumber(totals[2]) or 0)
end
return { string.format('%.0f', awaiting), string.format('%.0f', held), string.format('%.0f', held_bytes) }
