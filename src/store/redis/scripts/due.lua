-- Finds the awaiting markers of one partition that are due. Changes nothing. Stands alone, without gate.lua.
-- KEYS: 1 deadlines
-- ARGV: now (milliseconds, or empty: the server's own clock), limit
-- Reply: time to the next deadline that is not due, in ms, or an empty string; then, as one list, the members that
--        are due
local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local at = string.format('%.0f', now)
local due = redis.call('ZRANGE', KEYS[1], '-inf', at, 'BYSCORE', 'LIMIT', '0', ARGV[2])
local next = redis.call('ZRANGE', KEYS[1], '(' .. at, '+inf', 'BYSCORE', 'LIMIT', '0', '1', 'WITHSCORES')
return { next[2] and string.format('%.0f', tonumber(next[2]) - now) or '', due }
