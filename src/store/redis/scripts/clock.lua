-- Determines the current time, and formats times. Comes first in every script that works on a conversation.
-- ARGV: 1 current time in ms (empty: the server's clock)
--       2 first day of the date table, in days since the Unix epoch
--       3 date table: consecutive dates (YYYY-MM-DD, 10 characters each); Lua has no calendar
-- Reply: dates, now in ms: the date table does not contain both today and tomorrow, and nothing was changed
local call, floor, format, sub = redis.call, math.floor, string.format, string.sub

local NOW = tonumber(ARGV[1])
if not NOW then
    local time = call('TIME')
    NOW = time[1] * 1000 + floor(time[2] / 1000)
end
local FIRST_DAY, DATES = ARGV[2], ARGV[3]
local today = floor(NOW / 86400000) - FIRST_DAY
if today < 0 or today + 2 > #DATES / 10 then
    return { 'dates', NOW }
end

-- The date of a time, as YYYY-MM-DD. The date table must contain it.
local function date(ms)
    local at = (floor(ms / 86400000) - FIRST_DAY) * 10
    return sub(DATES, at + 1, at + 10)
end

-- Formats a time as RFC 3339 in UTC with milliseconds. `day`: the date of `ms`.
local function rfc3339(ms, day)
    ms = ms % 86400000
    local second = floor(ms / 1000)
    return format('%sT%02d:%02d:%02d.%03dZ', day, floor(second / 3600), floor(second / 60) % 60, second % 60, ms % 1000)
end
