-- Settles an awaiting item as cancelled. `reason`: a JSON string, or empty. Returns the item's new stored form.
local function cancel_item(c, sequence, item, attempt, request, reason)
    return settle(c, sequence, item, CANCELLED, NOW_TEXT, attempt, 0, request, reason)
end
