-- Times out those of the named items that are due. A stale timer finds nothing to do.
-- ARGV: work_items, separated by spaces
-- Reply: expired, then work item id and lateness in ms in turn
local c = load_conversation()
local reply = { 'expired' }
for id in string.gmatch(A.work_items, '%S+') do
    local item = c and not c.ended and load_item_by_id(id)
    if item and not item.outcome then
        if NOW >= item.deadline then
            time_out(c, item)
            reply[#reply + 1] = id
            reply[#reply + 1] = text(NOW - item.deadline)
        end
    else
        redis.call('ZREM', DEADLINES, A.reference .. '/' .. id)
    end
end
if c and not c.ended then
    release(c)
    save_conversation(c)
end
return reply
