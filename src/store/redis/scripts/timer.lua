-- Sets the timer of the conversation as a whole: the time at which the sweeper next processes it.
local function set_timer(c)
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
