-- The sweeper's step: times out the given items if they are due, continues a release that a bounded step left
-- unfinished, ends a conversation whose idle timeout has passed, and deletes one whose retention is over. A stale
-- timer has no effect.
-- ARGV: 4 traceparent or empty, 5 whether to process the conversation as a whole 0|1, 6 … sequences
-- Reply: gone: the conversation no longer exists
--        expired, now, state, metadata, ended by this step 0|1, time in ms until the earliest of the given timers
--        that fired too early and were set again (0: none), number of items that timed out, then for each of those:
--        sequence, item; then for each item released in this step: item, held before 0|1
local whole = ARGV[5] == '1'
local sequences = {}
for i = 6, #ARGV do
    sequences[i - 5] = tonumber(ARGV[i])
end
local read = call('HMGET', CONVERSATION, 's', 'c', unpack(sequences))
local c = read[1] and stored(read[1], read[2])
bypass_maxmemory()
if not c then
    for _, sequence in ipairs(sequences) do
        call('ZREM', TIMERS, REFERENCE .. ':' .. sequence)
    end
    if whole and call('ZREM', TIMERS, REFERENCE) == 1 then
        call('HINCRBY', TOTALS, 'conversations', -1)
    end
    redis.pcall('ZREM', WAITING, REFERENCE)
    return { 'gone' }
end

local timed_out, ended, next_in = {}, 0, 0
if c.ended then
    for _, sequence in ipairs(sequences) do
        -- clear_timers removes the timers of the other items.
        if sequence < c.gate or sequence >= c.next then
            call('ZREM', TIMERS, REFERENCE .. ':' .. sequence)
        end
    end
    if c.ended_at == 0 then
        finish(c, c.ended)
        ended = 1
    else
        local cleared = clear_timers(c)
        if cleared > 0 then
            call('HINCRBY', TOTALS, 'clearing', -cleared)
        end
        save(c)
    end
    append_end(c, '')
    if c.cleared == c.next and NOW >= c.ended + $retention then
        call('UNLINK', CONVERSATION, CHANNEL, HELD)
        call('HINCRBY', TOTALS, 'conversations', 0 - call('ZREM', TIMERS, REFERENCE))
        return { 'gone' }
    end
    whole = true
else
    local known = {}
    for i, sequence in ipairs(sequences) do
        local item = known[sequence] or read[i + 2]
        local outcome, times_out_at = AWAITING, 0
        if item then
            outcome, times_out_at = byte(item, -1), decode('>I6', item)
        end
        if item and outcome == AWAITING and NOW >= times_out_at then
            item = time_out(c, sequence, item)
            timed_out[#timed_out + 1] = sequence
            timed_out[#timed_out + 1] = item
        elseif item and outcome == AWAITING then
            call('ZADD', TIMERS, times_out_at, REFERENCE .. ':' .. sequence)
            next_in = next_in == 0 and times_out_at - NOW or math.min(next_in, times_out_at - NOW)
        else
            OBSOLETE_TIMERS[#OBSOLETE_TIMERS + 1] = REFERENCE .. ':' .. sequence
        end
        known[sequence] = item or nil
    end
    if c.gate_deadline > 0 and NOW >= c.gate_deadline then
        release(c, known)
    end
    if #OBSOLETE_TIMERS > 0 or c.gate > c.gate_before then
        save(c)
    end
end
if whole then
    set_timer(c)
end
local reply = { 'expired', NOW, state_of(c), c.metadata, ended, next_in, #timed_out / 2 }
for _, value in ipairs(timed_out) do
    reply[#reply + 1] = value
end
for _, value in ipairs(RELEASED) do
    reply[#reply + 1] = value
end
return reply
