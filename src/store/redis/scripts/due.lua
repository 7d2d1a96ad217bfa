-- Finds the markers of some partitions whose time has come, and hands them to the caller alone: nobody else is given
-- them for a while. Stands alone.
-- KEYS: timers of each partition
-- ARGV: 1 now in ms, or empty: the server's own clock, 2 most markers of a partition, 3 for how long they are the
--       caller's, ms
-- Reply: now; then of each partition the time in ms to its next marker that is not given (0: more are due), or -1, and
--        the markers that are
local call = redis.call
local now, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
if not now then
    local time = call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local reply = { now }
for _, timers in ipairs(KEYS) do
    -- One more than is given tells whether there is more, or when. A key that somebody has spoilt must not stop the others.
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
        -- This write takes no memory: a server that is full takes what follows it in the same script.
        call('PEXPIRE', timers, $partition_ttl)
        -- Lua cannot unpack any number at once.
        for i = 1, #taken, 1000 do
            call('ZADD', timers, 'XX', unpack(taken, i, math.min(i + 999, #taken)))
        end
    end
end
return reply
