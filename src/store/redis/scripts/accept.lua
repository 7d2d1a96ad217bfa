-- Takes a callback: checks, de-duplicates, moves the gate and writes the channel, in one step.
-- KEYS 7: used
-- ARGV: work_item, expires_at, fingerprint, outcome succeeded|failed, payload, request_id, attempt,
--       max_held_items, max_held_bytes
-- Reply: taken, replayed 0|1, conversation_id, gate, the item, released (optional)
--        token_expired | conversation_ended | work_item_unknown | token_used | work_item_timed_out |
--        work_item_cancelled | held_limit, each with conversation_id and the item, as far as they are known
local expires_at = number(A.expires_at)
if NOW >= expires_at then
    return { 'token_expired' }
end
local c = load_conversation()

local function refuse(word, item)
    if not c then
        return { word }
    end
    local reply = { word, 'conversation_id', c.id }
    return item and describe(item, reply) or reply
end

if not c then
    return refuse('conversation_ended')
end
check_kinds()
local item = load_item_by_id(A.work_item)
if not item then
    return refuse(c.ended and 'conversation_ended' or 'work_item_unknown')
end
local first = redis.call('GET', USED)
if c.ended and (not first or item.sequence >= c.gate) then
    return refuse('conversation_ended', item)
end

local replayed = '0'
-- A step that failed halfway spent the token, and did no more: it is done again.
if first == A.fingerprint and not item.outcome then
    first = false
end
if first then
    if first ~= A.fingerprint then
        return refuse('token_used', item)
    end
    replayed = item.attempt == A.attempt and '0' or '1'
    if item.sequence >= c.gate and not redis.call('HGET', HELD, text(item.sequence)) then
        -- One that failed a little later settled the item, and neither kept its result nor counted it.
        item.payload = A.payload
        c.awaiting = c.awaiting - 1
        c.held_bytes = c.held_bytes + #A.payload
    end
else
    local outcome = outcome_at(item, NOW)
    if outcome == 'timed_out' or outcome == 'cancelled' then
        return refuse('work_item_' .. outcome, item)
    elseif outcome then
        return refuse('token_used', item)
    end

    -- The rule of held results: one that is released in the same step is never too much.
    local too_much = held(c) >= number(A.max_held_items) or c.held_bytes + #A.payload > number(A.max_held_bytes)
    if too_much then
        for sequence = c.gate, item.sequence - 1 do
            local before = load_item(sequence)
            if before and not outcome_at(before, NOW) then
                return refuse('held_limit', item)
            end
        end
    end

    redis.call('SET', USED, A.fingerprint, 'NX', 'PX', text(expires_at - NOW + number(A.grace)))
    settle(c, item, {
        outcome = A.outcome, received_at = text(NOW), request_id = A.request_id, attempt = A.attempt,
        bytes = text(#A.payload), payload = A.payload,
    })
    c.touched_at = NOW
end
if not c.ended then
    release(c, item)
    save_conversation(c)
end
return with_released(describe(item, {
    'taken', 'replayed', replayed, 'conversation_id', c.id, 'gate', text(c.gate),
}))
