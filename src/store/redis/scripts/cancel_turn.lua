-- Cancels the awaiting items of a turn. A step examines up to $step_turn unreleased items of the conversation.
-- ARGV: 4 traceparent or empty, 5 first sequence to examine, 6 sequence before which to stop (empty: the next to
--       be issued), 7 prefix of the envelope members of every item of the turn, 8 request id, 9 attempt
--       (8 bytes), 10 reason as a JSON string or empty
-- Reply: cancelled, now, state, metadata, first sequence not examined, sequence before which to stop (the caller
--        repeats the call until the first reaches the second), list of the turn's items that were not released before
--        this step or that this attempt has cancelled; then for each item released in this step: item, held before 0|1
--        conversation_not_found | conversation_ended
local MEMBERS, ATTEMPT = ARGV[7], ARGV[9]
local read = call('HMGET', CONVERSATION, 's', 'c')
local c = conversation(read[1], read[2])
if not c then
    return { 'conversation_not_found' }
end
-- If this call is a retry after a lost reply, the first call may have released up to $step_items items. They are
-- examined again, and those that this attempt cancelled are listed, even if the conversation has ended since.
local first = max(tonumber(ARGV[5]), c.gate - $step_items)
local stop = tonumber(ARGV[6]) or c.next
local sequences = {}
for sequence = first, math.min(max(first, c.gate) + $step_turn, stop) - 1 do
    sequences[#sequences + 1] = sequence
end
local known, listed, cancelled = {}, {}, false
for i, item in ipairs(#sequences > 0 and call('HMGET', CONVERSATION, unpack(sequences)) or {}) do
    local sequence = sequences[i]
    if sub(select(8, decode(ITEM, item)), 1, #MEMBERS) == MEMBERS then
        if outcome_at(item, NOW) == AWAITING and not c.ended then
            if not cancelled then
                bypass_maxmemory()
                cancelled = true
            end
            item = cancel_item(c, sequence, item, ATTEMPT, ARGV[8], ARGV[10])
        end
        local is_listed = not c.ended
        if sequence < c.gate then
            is_listed = outcome_at(item, NOW) == CANCELLED and settled_by(item) == ATTEMPT
        end
        if is_listed then
            listed[#listed + 1] = item
        end
    end
    known[sequence] = item
end
if c.ended and #listed == 0 then
    return { 'conversation_ended' }
elseif cancelled then
    touch(c)
    release(c, known)
    save(c)
end
return { 'cancelled', NOW, state_of(c), c.metadata, first + #sequences, stop, listed, unpack(RELEASED) }
