-- The TTL of the keys in Redis. It only frees memory: every rule uses the times in the data.

-- Extends the TTL of the conversation's keys to the end of its retention plus $grace ms, if less than half of that
-- margin is left. The TTL of the partition's keys exceeds the longest time that a conversation can exist without a
-- step.
local function extend_ttl(c)
    local needed = (c.ended or idle_at(c)) + $retention
    if c.kept_until < needed + $grace / 2 then
        c.kept_until = needed + $grace
        local ttl = c.kept_until - NOW
        call('PEXPIRE', CONVERSATION, ttl)
        call('PEXPIRE', CHANNEL, ttl)
        call('PEXPIRE', HELD, ttl)
        call('PEXPIRE', TIMERS, $partition_ttl)
        call('PEXPIRE', TOTALS, $partition_ttl)
    end
end
