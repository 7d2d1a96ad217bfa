-- Withdraws a work item.
-- ARGV: work_item, request_id, attempt
-- Reply: cancelled, the item as it stands, released (optional)
--        conversation_not_found | work_item_not_found | conversation_ended
--        work_item_settled, outcome
local c = load_conversation()
if not c then
    return { 'conversation_not_found' }
end
check_kinds()
local item = load_item_by_id(A.work_item)
if not item then
    return { 'work_item_not_found' }
end
-- An attempt whose answer was lost is told what it did, unless the end has dropped it since.
local outcome = outcome_at(item, NOW)
local repeated = outcome == 'cancelled' and item.attempt == A.attempt and (not c.ended or item.sequence < c.gate)
if c.ended and not repeated then
    return { 'conversation_ended' }
elseif outcome and not repeated then
    return { 'work_item_settled', 'outcome', outcome }
elseif not outcome then
    settle(c, item, {
        outcome = 'cancelled', received_at = text(NOW), request_id = A.request_id, attempt = A.attempt,
    })
    c.touched_at = NOW
end
if not c.ended then
    release(c, item)
    save_conversation(c)
end
return with_released({ 'cancelled', unpack(view(c, item)) })
