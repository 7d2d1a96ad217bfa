-- The time, and times as text. Stands before every operation.
-- ARGV: 1 now in ms, or empty: the server's own clock counts
--       2 a day of the epoch, and 3 its date and those of the days after it, 10 characters each
-- Reply: dates, now in ms: the dates given are not those around the server's time. Nothing was changed
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

-- The date of a time, which is on one of the dates.
local function date(ms)
    local at = (floor(ms / 86400000) - FIRST_DAY) * 10
    return sub(DATES, at + 1, at + 10)
end

-- RFC 3339 in UTC with milliseconds, of a time whose date is known.
local function rfc3339(ms, day)
    ms = ms % 86400000
    local second = floor(ms / 1000)
    return format('%sT%02d:%02d:%02d.%03dZ', day, floor(second / 3600), floor(second / 60) % 60, second % 60, ms % 1000)
end
