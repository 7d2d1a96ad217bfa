-- The end of a conversation, and its removal afterwards.

-- Removes up to $step_timers timers of an ended conversation's items. Returns how many of them existed.
local function clear_timers(c)
    local timers = {}
    for sequence = c.cleared, math.min(c.cleared + $step_timers, c.next) - 1 do
        timers[#timers + 1] = REFERENCE .. ':' .. sequence
    end
    c.cleared = c.cleared + #timers
    return #timers > 0 and call('ZREM', TIMERS, unpack(timers)) or 0
end

-- Ends a conversation at `time` and removes the first $step_timers timers of its items. The sweeper removes the
-- others. Until then, the total `clearing` includes them, so that they do not count as awaiting.
local function finish(c, time)
    c.ended_at, c.ended, c.cleared = time, time, c.gate
    local left = c.awaiting - clear_timers(c)
    if left > 0 then
        call('HINCRBY', TOTALS, 'clearing', left)
    end
    -- Makes `save` notify the readers of the channel, even if no item was released.
    c.gate_before = 0
    save(c)
    call('UNLINK', HELD)
end

-- Appends the channel's last entry. `reason`: a JSON string, or empty. pcall: Redis refuses an id that exists already.
local function append_end(c, reason)
    local opened_at, _, id = decode(METADATA, c.metadata)
    local member = reason == '' and '' or ',"reason":' .. reason
    redis.pcall('XADD', CHANNEL, opened_at .. '-' .. c.gate, 'end',
        '{"conversationId":"' .. id .. '","state":"ended"' .. member .. '}')
    call('PEXPIRE', CHANNEL, c.kept_until - NOW)
end
