-- Issues the next work item.
-- ARGV: 4 attempt: the id without its last 8 digits, 5 the time in it (ms), 6 timeout, 7 replay window, 8 key id,
--       9 trace or empty, 10 trace of the request or empty, 11 members of the envelope, 12 digest of the idempotency key
--       or empty, 13 fingerprint of the request
-- Reply: issued, repeated 0|1, sequence, item
--        conversation_not_found | conversation_ended | idempotency_conflict | awaiting_limit | channel_limit
local attempt, attempted_at, key, fingerprint = ARGV[4], tonumber(ARGV[5]), ARGV[12], ARGV[13]
local read = call('HMGET', CONVERSATION, 's', 'c', 'k' .. key)
local c, known = conversation(read[1], read[2]), read[3]
if not c then
    return { 'conversation_not_found' }
end
-- An attempt whose answer was lost is told what it did, whatever came after it. Ids begin with their time: one later
-- than all before is a new one. The clocks of those who make ids are 30 s apart at most.
if attempted_at <= c.last_issue then
    for sequence = c.next - 1, 1, -1 do
        local item = call('HGET', CONVERSATION, sequence)
        local id = id_of(item)
        if sub(id, 1, 28) == attempt then
            return { 'issued', 0, sequence, item }
        elseif tonumber(sub(id, 1, 8) .. sub(id, 10, 13), 16) < attempted_at - 30000 then
            break
        end
    end
end
if c.ended then
    return { 'conversation_ended' }
elseif known then
    local sequence = tonumber(sub(known, 17))
    if sub(known, 1, 16) ~= fingerprint then
        return { 'idempotency_conflict' }
    end
    return { 'issued', 1, sequence, call('HGET', CONVERSATION, sequence) }
elseif c.awaiting >= $max_awaiting_items then
    return { 'awaiting_limit' }
elseif c.next > $max_channel_length or c.channel_bytes + c.held_bytes >= $max_channel_bytes then
    return { 'channel_limit' }
end

local sequence, deadline, trace = c.next, NOW + ARGV[6], ARGV[9]
if trace == '' then
    trace = select(4, decode(FACTS, c.facts))
    trace = trace == '' and ARGV[10] or trace
end
local item = encode(ITEM, AWAITING, deadline, ARGV[7], attempt .. format('%08x', sequence), rfc3339(NOW, date(NOW)),
    date(deadline), #ARGV[8], ARGV[8], #trace, trace, #ARGV[11], ARGV[11])
if c.gate == sequence then
    c.gate_deadline = deadline
end
c.next = sequence + 1
c.awaiting = c.awaiting + 1
c.touched_at = NOW
c.busy_until = max(c.busy_until, deadline)
c.last_issue = max(c.last_issue, attempted_at)
keep(c)
call('ZADD', TIMERS, deadline, REFERENCE .. ':' .. sequence)
if key == '' then
    call('HSET', CONVERSATION, 's', state_of(c), sequence, item)
else
    call('HSET', CONVERSATION, 's', state_of(c), sequence, item, 'k' .. key, fingerprint .. sequence)
end
return { 'issued', 0, sequence, item }
