-- Ends a conversation at this time. Markers of its items beyond the first few hundred are left to the sweeper.
local function finish(c, time)
    local opened_at, _, id = decode(FACTS, c.facts)
    c.ended_at, c.ended, c.cleared = time, time, c.gate
    call('UNLINK', HELD)
    call('XADD', CHANNEL, opened_at .. '-' .. c.gate, 'end', '{"conversationId":"' .. id .. '","state":"ended"}')
    c.gate_before = 0
end

-- Removes some markers of an ended conversation's items, and tells how many of them there were.
local function clear(c)
    local markers = {}
    for sequence = c.cleared, math.min(c.cleared + $step_markers, c.next) - 1 do
        markers[#markers + 1] = REFERENCE .. ':' .. sequence
    end
    c.cleared = c.cleared + #markers
    return #markers > 0 and call('ZREM', TIMERS, unpack(markers)) or 0
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
