-- Opens a conversation, or restarts the idle timeout of an open one.
-- ARGV: 4 conversation id, 5 idle TTL in ms or empty, 6 traceparent or empty, 7 attempt (8 bytes)
-- Reply: opened, created by this attempt 0|1
--        conversation_ended
local idle_ttl, trace, attempt = tonumber(ARGV[5]), ARGV[6], ARGV[7]
local read = call('HMGET', CONVERSATION, 's', 'c')
local c = conversation(read[1], read[2])
local created, former = 1, nil
if not c then
    former = read[1] and stored(read[1])
    -- Later than the opening of the previous conversation with this id, even if the clock was set back, so that
    -- event ids increase.
    local opened_at = read[2] and max(NOW, decode(METADATA, read[2]) + 1) or NOW
    c = {
        touched_at = NOW, idle_ttl = idle_ttl or $default_idle_ttl, busy_until = 0, kept_until = 0, ended_at = 0,
        next = 1, gate = 1, awaiting = 0, held_bytes = 0, gate_deadline = 0, channel_bytes = 0, cleared = 0,
        last_issue = ('\0'):rep(12),
        metadata = encode(METADATA, format('%013d', opened_at), attempt, #ARGV[4], ARGV[4], #trace, trace),
        is_new = true,
    }
elseif c.ended then
    return { 'conversation_ended' }
else
    local opened_at, opened_by, id, known_trace = decode(METADATA, c.metadata)
    created = opened_by == attempt and 1 or 0
    c.touched_at, c.idle_ttl = NOW, idle_ttl or c.idle_ttl
    trace = trace == '' and known_trace or trace
    c.metadata = encode(METADATA, opened_at, opened_by, #id, id, #trace, trace)
end
-- Must be the first write of the script: at maxmemory, Redis refuses it (OOM), and nothing has been changed yet.
set_timer(c)
if c.is_new then
    call('UNLINK', CONVERSATION, CHANNEL, HELD)
    if not former then
        call('HINCRBY', TOTALS, 'conversations', 1)
    elseif former.ended_at == 0 then
        -- The idle timeout ended it, and no step has subtracted its held results from the totals or removed it from
        -- the index of waiting conversations.
        call('HINCRBY', TOTALS, 'held', 0 - former.held_before)
        call('HINCRBY', TOTALS, 'held_bytes', 0 - former.bytes_before)
        redis.pcall('ZREM', WAITING, REFERENCE)
    end
end
extend_ttl(c)
call('HSET', CONVERSATION, 's', state_of(c), 'c', c.metadata)
call('PEXPIRE', CONVERSATION, c.kept_until - NOW)
return { 'opened', created }
