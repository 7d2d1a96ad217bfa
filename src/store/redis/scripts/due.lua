-- Finds the awaiting markers of some partitions that are due. Changes nothing. Stands alone, without gate.lua.
-- KEYS: deadlines of each partition
-- ARGV: now (milliseconds, or empty: the server's own clock), most members of a partition
-- Reply: time to the next deadline that is not due, in ms, or an empty string; more 0|1, whether some partition has
--        more than it may give; then the members that are due
local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local at = string.format('%.0f', now)
local limit = tonumber(ARGV[2])
local nearest
local reply = { '', '0' }
for _, deadlines in ipairs(KEYS) do
    -- One more than is given tells whether there is more.
    -- A key that somebody has spoilt must not stop the others.
    local due = redis.pcall('ZRANGE', deadlines, '-inf', at, 'BYSCORE', 'LIMIT', '0', string.format('%.0f', limit + 1))
    if due.err then
        due = {}
    end
    for i = 1, math.min(#due, limit) do
        reply[#reply + 1] = due[i]
    end
    if #due > limit then
        reply[2] = '1'
    end
    local next = redis.pcall('ZRANGE', deadlines, '(' .. at, '+inf', 'BYSCORE', 'LIMIT', '0', '1', 'WITHSCORES')
    local score = tonumber(next[2])
    if score and (not nearest or score < nearest) then
        nearest = score
    end
end
if nearest then
    reply[1] = string.format('%.0f', nearest - now)
end
return reply
