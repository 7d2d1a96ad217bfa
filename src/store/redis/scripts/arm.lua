-- Sets the time at which the sweeper next processes the conversation as a whole.
local function arm(c)
    local time
    if c.ended_at > 0 then
        time = c.cleared < c.next and NOW or c.ended_at + $retention
    elseif c.gate_deadline == 1 then
        time = NOW + $continue_after
    else
        time = idle_at(c)
    end
    call('ZADD', TIMERS, time, REFERENCE)
end
