-- Returns the due timers of some partitions and claims them: no other caller gets them until the claim expires.
-- Does not use clock.lua and conversation.lua.
-- KEYS: timers of each partition
-- ARGV: 1 current time in ms (empty: the server's clock), 2 maximum number of timers per partition, 3 duration of
--       the claim in ms
-- Reply: now in ms; then for each partition a list: the time in ms until its first timer that is not in this reply
--        (0: more are due, -1: there is none), then the claimed members
local call = redis.call
local now, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
if not now then
    local time = call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local reply = { now }
for _, timers in ipairs(KEYS) do
    -- Reads one timer more than the limit, to know the time until the next one. pcall: a key of the wrong type must
    -- not stop the other partitions.
    local first = redis.pcall('ZRANGE', timers, 0, limit, 'WITHSCORES')
    local partition, taken = { -1 }, {}
    for i = 1, #first, 2 do
        local time = tonumber(first[i + 1])
        if time > now or #partition > limit then
            partition[1] = math.max(time - now, 0)
            break
        end
        partition[#partition + 1] = first[i]
        taken[#taken + 1] = now + ARGV[3]
        taken[#taken + 1] = first[i]
    end
    reply[#reply + 1] = partition
    if #taken > 0 then
        -- See bypass_maxmemory in release.lua.
        call('PEXPIRE', timers, $partition_ttl)
        -- The size of Lua's stack limits unpack.
        for i = 1, #taken, 1000 do
            call('ZADD', timers, 'XX', unpack(taken, i, math.min(i + 999, #taken)))
        end
    end
end
return reply
