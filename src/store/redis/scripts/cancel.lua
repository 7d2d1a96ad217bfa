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
if c.ended then
    return { 'conversation_ended' }
end
local outcome = outcome_at(item, NOW)
if not outcome then
    settle(c, item, {
        outcome = 'cancelled', received_at = text(NOW), request_id = A.request_id, attempt = A.attempt,
    })
    c.touched_at = NOW
elseif outcome ~= 'cancelled' or item.attempt ~= A.attempt then
    return { 'work_item_settled', 'outcome', outcome }
end
release(c, item)
save_conversation(c)
return with_released({ 'cancelled', unpack(view(c, item)) })
