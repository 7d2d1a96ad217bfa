-- How long keys live. Redis only collects by it: what has ended or timed out is decided by times in the data.

-- Lets the conversation's keys live for as long as its data can be asked for and longer: at least half the grace, at
-- most all of it. The partition's live for longer than any conversation does without a step.
local function keep(c)
    local needed = (c.ended or max(c.touched_at + c.idle_ttl, c.busy_until)) + $retention
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
