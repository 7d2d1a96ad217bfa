-- Returns the conversations with the oldest held results in each of some partitions. Read-only. Does not use clock.lua
-- and conversation.lua.
-- KEYS: waiting (the index) of each partition
-- ARGV: 1 maximum number of conversations per partition
-- Reply: conversation and the time in ms at which its oldest held item was settled, alternating
local reply = {}
for _, waiting in ipairs(KEYS) do
    -- pcall: a key of the wrong type must not stop the other partitions.
    for _, value in ipairs(redis.pcall('ZRANGE', waiting, 0, ARGV[1] - 1, 'WITHSCORES')) do
        reply[#reply + 1] = value
    end
end
return reply
