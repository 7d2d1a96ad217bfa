-- Issues the next work item.
-- ARGV: 4 attempt: the work item id without its last 8 digits, 5 the same as 12 bytes, 6 whether this call is a
--       retry 0|1, 7 timeout in ms, 8 replay window in ms, 9 key id, 10 traceparent of the work item or empty,
--       11 traceparent of the request or empty, 12 members of the envelope, 13 digest of the idempotency key (16
--       bytes) or empty, 14 fingerprint of the request (16 bytes) or empty, 15 heartbeat timeout in ms or empty
-- Reply: issued, repeated by idempotency key 0|1, sequence, item
--        conversation_not_found | conversation_ended | idempotency_conflict | awaiting_limit | channel_limit
local attempt, key, fingerprint = ARGV[4], ARGV[13], ARGV[14]
local read = call('HMGET', CONVERSATION, 's', 'c', 'k' .. key)
local c, previous = conversation(read[1], read[2]), read[3]
if not c then
    return { 'conversation_not_found' }
end
-- A retry after a lost reply returns the item that the first call issued, even if the conversation has since ended.
-- Searches only the last $step_search items, because a retry follows immediately.
if c.last_issue == ARGV[5] or ARGV[6] == '1' then
    local sequences = {}
    for sequence = c.next - 1, max(c.next - $step_search, 1), -1 do
        sequences[#sequences + 1] = sequence
    end
    for i, item in ipairs(#sequences > 0 and call('HMGET', CONVERSATION, unpack(sequences)) or {}) do
        if sub(id_of(item), 1, 28) == attempt then
            return { 'issued', 0, sequences[i], item }
        end
    end
end
if c.ended then
    return { 'conversation_ended' }
elseif previous then
    local sequence = tonumber(sub(previous, 17))
    if sub(previous, 1, 16) ~= fingerprint then
        return { 'idempotency_conflict' }
    end
    return { 'issued', 1, sequence, call('HGET', CONVERSATION, sequence) }
elseif c.awaiting >= $max_awaiting_items then
    return { 'awaiting_limit' }
elseif c.next > $max_channel_length or c.channel_bytes + c.held_bytes >= $max_channel_bytes then
    return { 'channel_limit' }
end

local sequence, deadline, trace = c.next, NOW + ARGV[7], ARGV[10]
if trace == '' then
    trace = select(4, decode(METADATA, c.metadata))
    trace = trace == '' and ARGV[11] or trace
end
local times_out_at, heartbeat, heartbeat_timeout = deadline, '', tonumber(ARGV[15])
if heartbeat_timeout then
    times_out_at = math.min(NOW + heartbeat_timeout, deadline)
    heartbeat = encode(HEARTBEAT, deadline, heartbeat_timeout, 0, 0)
end
local item = encode(ITEM, times_out_at, ARGV[8], attempt .. format('%08x', sequence),
    rfc3339(NOW, date(NOW)), date(times_out_at), #ARGV[9], ARGV[9], #trace, trace, #ARGV[12], ARGV[12], #heartbeat,
    heartbeat, AWAITING)
if c.gate == sequence then
    c.gate_deadline = times_out_at
end
c.next = sequence + 1
c.awaiting = c.awaiting + 1
c.touched_at = NOW
c.busy_until = max(c.busy_until, deadline)
c.last_issue = ARGV[5]
-- Must be the first write of the script: at maxmemory, Redis refuses it (OOM), and nothing has been changed yet.
call('ZADD', TIMERS, times_out_at, REFERENCE .. ':' .. sequence)
extend_ttl(c)
if key == '' then
    call('HSET', CONVERSATION, 's', state_of(c), sequence, item)
else
    call('HSET', CONVERSATION, 's', state_of(c), sequence, item, 'k' .. key, fingerprint .. sequence)
end
return { 'issued', 0, sequence, item }
