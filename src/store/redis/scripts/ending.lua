-- What ends a conversation.

-- Removes some markers of an ended conversation's items, and tells how many of them there were.
local function clear(c)
    local markers = {}
    for sequence = c.cleared, math.min(c.cleared + $step_markers, c.next) - 1 do
        markers[#markers + 1] = REFERENCE .. ':' .. sequence
    end
    c.cleared = c.cleared + #markers
    return #markers > 0 and call('ZREM', TIMERS, unpack(markers)) or 0
end

-- Ends a conversation at this time. Markers of its items beyond the first few hundred are left to the sweeper: they are
-- counted until then.
local function finish(c, time)
    c.ended_at, c.ended, c.cleared = time, time, c.gate
    local left = c.awaiting - clear(c)
    if left > 0 then
        call('HINCRBY', TOTALS, 'clearing', left)
    end
    c.gate_before = 0
    save(c)
    call('UNLINK', HELD)
end

-- Writes the last entry of the channel, unless it is there.
local function append_end(c)
    local opened_at, _, id = decode(FACTS, c.facts)
    redis.pcall('XADD', CHANNEL, opened_at .. '-' .. c.gate, 'end', '{"conversationId":"' .. id .. '","state":"ended"}')
    call('PEXPIRE', CHANNEL, c.kept_until - NOW)
end

-- When the sweeper has to look at the conversation next.
local function arm(c)
    local time
    if c.ended_at > 0 then
        time = c.cleared < c.next and NOW or c.ended_at + $retention
    elseif more(c) == 1 then
        time = NOW + 1000
    else
        time = max(c.touched_at + c.idle_ttl, c.busy_until)
    end
    call('ZADD', TIMERS, time, REFERENCE)
end
