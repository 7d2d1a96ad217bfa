-- Shows a work item. Changes nothing.
-- ARGV: work_item
-- Reply: work_item, the item as it stands
--        conversation_not_found | work_item_not_found
local c = load_conversation()
if not c then
    return { 'conversation_not_found' }
end
local item = load_item_by_id(A.work_item)
if not item then
    return { 'work_item_not_found' }
end
return { 'work_item', unpack(view(c, item)) }
