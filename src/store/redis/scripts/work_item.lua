-- Returns a work item. Read-only.
-- ARGV: 4 sequence, 5 work item id
-- Reply: work_item, now, state, item
--        conversation_not_found | work_item_not_found
local read = call('HMGET', CONVERSATION, 's', 'c', ARGV[4])
local c, item = conversation(read[1], read[2]), read[3]
if not c then
    return { 'conversation_not_found' }
elseif not item or id_of(item) ~= ARGV[5] then
    return { 'work_item_not_found' }
end
return { 'work_item', NOW, read[1], item }
