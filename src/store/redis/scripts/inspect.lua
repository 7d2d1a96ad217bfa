-- Returns a conversation and a range of its unreleased items, in order. Read-only.
-- ARGV: 4 first sequence, 5 maximum number of items
-- Reply: conversation, now, state, metadata, reason of the end as a JSON string or empty, sequence of the first
--        item, list of items
--        conversation_not_found
local read = call('HMGET', CONVERSATION, 's', 'c', 'r')
local c = conversation(read[1], read[2])
if not c then
    return { 'conversation_not_found' }
end
local first = max(tonumber(ARGV[4]), c.gate)
local last = math.min(first + ARGV[5], c.next) - 1
local items = {}
if first <= last then
    local sequences = {}
    for sequence = first, last do
        sequences[#sequences + 1] = sequence
    end
    items = call('HMGET', CONVERSATION, unpack(sequences))
end
return { 'conversation', NOW, read[1], c.metadata, read[3] or '', first, items }
