-- Records a heartbeat of a work item. Does not use up the token, and does not restart the conversation's idle timeout.
-- Does not change the item's timer: when it fires, expire.lua finds that the item has not timed out, and sets the timer
-- again.
-- ARGV: 4 sequence, 5 work item id, 6 expiry of the token in ms, 7 members `message` and `data` of the progress event
--       or empty
-- Reply: alive, now, state, metadata, item, progress published 0|1
--        token_expired | conversation_ended | work_item_unknown | work_item_timed_out | work_item_cancelled, followed
--        by metadata and item if they are known
local sequence, PROGRESS = tonumber(ARGV[4]), ARGV[7]
if NOW >= tonumber(ARGV[6]) then
    return { 'token_expired' }
end
local read = call('HMGET', CONVERSATION, 's', 'c', ARGV[4])
local c, item = conversation(read[1], read[2]), read[3]
if not c then
    return { 'conversation_ended' }
elseif not item or id_of(item) ~= ARGV[5] then
    return { c.ended and 'conversation_ended' or 'work_item_unknown', c.metadata }
end
local outcome = outcome_at(item, NOW)
local has_result = outcome == SUCCEEDED or outcome == FAILED
if c.ended and not (has_result and sequence < c.gate) then
    return { 'conversation_ended', c.metadata, item }
elseif outcome == TIMED_OUT then
    return { 'work_item_timed_out', c.metadata, item }
elseif outcome == CANCELLED then
    return { 'work_item_cancelled', c.metadata, item }
elseif has_result then
    return { 'alive', NOW, state_of(c), c.metadata, item, 0 }
end

local times_out_at, window, id, issued_at, day, key, trace, members, heartbeat = decode(ITEM, item)
local deadline, timeout, last_at, progress_at = times_out_at, 0, 0, 0
if heartbeat ~= '' then
    deadline, timeout, last_at, progress_at = decode(HEARTBEAT, heartbeat)
end
local publishes = PROGRESS ~= '' and math.abs(NOW - progress_at) >= $progress_interval
-- Several heartbeats in the same millisecond write once.
if last_at == NOW and not publishes then
    return { 'alive', NOW, state_of(c), c.metadata, item, 0 }
end
if timeout > 0 then
    times_out_at = math.min(NOW + timeout, deadline)
    day = date(times_out_at)
end
heartbeat = encode(HEARTBEAT, deadline, timeout, NOW, publishes and NOW or progress_at)
item = encode(ITEM, times_out_at, window, id, issued_at, day, #key, key, #trace, trace, #members, members,
    #heartbeat, heartbeat, AWAITING)
-- An item must not time out because Redis is full; see bypass_maxmemory in release.lua.
call('PEXPIRE', TIMERS, $partition_ttl)
if sequence == c.gate and c.gate_deadline > 1 then
    c.gate_deadline = times_out_at
    call('HSET', CONVERSATION, 's', state_of(c), sequence, item)
else
    call('HSET', CONVERSATION, sequence, item)
end
if publishes then
    -- pcall: the Redis user may lack the permission to publish.
    redis.pcall('PUBLISH', CHANNEL, '{"sequence":' .. sequence .. ',"workItemId":"' .. id .. '",' .. members .. ','
        .. PROGRESS .. ',"at":"' .. rfc3339(NOW, date(NOW)) .. '"}')
end
return { 'alive', NOW, state_of(c), c.metadata, item, publishes and 1 or 0 }
