-- Cancels what is awaiting of a turn, among $step_turn items of the conversation.
-- ARGV: 4 traceparent or empty, 5 first sequence to look at, 6 sequence at which to stop (empty: the next to be
--       issued), 7 start of the envelope's members of the turn's items, 8 request id, 9 attempt (8 bytes), 10 reason
--       as a JSON string or empty
-- Reply: cancelled, now, state, facts, first sequence not looked at, sequence at which to stop (the caller repeats the
--        call until the first reaches the second), list of the turn's items that were not released before this step or that this
--        attempt has cancelled; then for each item released in this step: item, was held 0|1
--        conversation_not_found | conversation_ended
local MEMBERS, ATTEMPT = ARGV[7], ARGV[9]
local read = call('HMGET', CONVERSATION, 's', 'c')
local c = conversation(read[1], read[2])
if not c then
    return { 'conversation_not_found' }
elseif c.ended then
    return { 'conversation_ended' }
end
-- A step releases at most $step_items items. After a lost reply these are listed again.
local first = max(tonumber(ARGV[5]), c.gate - $step_items)
local stop = tonumber(ARGV[6]) or c.next
local sequences = {}
for sequence = first, math.min(max(first, c.gate) + $step_turn, stop) - 1 do
    sequences[#sequences + 1] = sequence
end
local known, listed, cancelled = {}, {}, false
for i, item in ipairs(#sequences > 0 and call('HMGET', CONVERSATION, unpack(sequences)) or {}) do
    local sequence = sequences[i]
    if sub(select(9, decode(ITEM, item)), 1, #MEMBERS) == MEMBERS then
        if outcome_at(item, NOW) == AWAITING then
            if not cancelled then
                allow_writes()
                cancelled = true
            end
            item = withdraw(c, sequence, item, ATTEMPT, ARGV[8], ARGV[10])
        end
        if sequence >= c.gate or outcome_at(item, NOW) == CANCELLED and settled_by(item) == ATTEMPT then
            listed[#listed + 1] = item
        end
    end
    known[sequence] = item
end
if cancelled then
    touch(c)
    release(c, known)
    save(c)
end
return { 'cancelled', NOW, state_of(c), c.facts, first + #sequences, stop, listed, unpack(RELEASED) }
