-- Reads a channel. Read-only.
-- ARGV: 4 sequence to read after, 5 maximum number of envelopes, 6 maximum number of bytes; if the first envelope
--       is larger, it is returned alone
-- Reply: page, now, state, metadata, reason of the end as a JSON string or empty, list of envelopes
--        conversation_not_found
local read = call('HMGET', CONVERSATION, 's', 'c', 'r')
local c = conversation(read[1], read[2])
if not c then
    return { 'conversation_not_found' }
end
local opened_at = decode(METADATA, c.metadata)
local after, count, remaining = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local last = math.min(after + count, c.gate - 1)
local envelopes = {}
for sequence = after + 1, last do
    if #envelopes > 0 and remaining <= 0 then
        break
    end
    local id = opened_at .. '-' .. sequence
    local entry = call('XRANGE', CHANNEL, id, id)[1]
    remaining = remaining - (entry and #entry[2][2] or 0)
    if not entry or (remaining < 0 and #envelopes > 0) then
        break
    end
    envelopes[#envelopes + 1] = entry[2][2]
end
return { 'page', NOW, read[1], c.metadata, read[3] or '', envelopes }
