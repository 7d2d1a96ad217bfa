-- Reads a channel. Changes nothing.
-- ARGV: after (a sequence, or 0), count
-- Reply: page, released (how many envelopes the channel has), ended 0|1, idle_in ms, the stream's entries as XRANGE gives them
--        conversation_not_found
local c = load_conversation()
if not c then
    return { 'conversation_not_found' }
end
local entries = {}
if A.count ~= '0' then
    entries = redis.call('XRANGE', CHANNEL, '(' .. A.after .. '-0', '+', 'COUNT', A.count)
end
local idle_in = math.max(0, c.touched_at + c.idle_ttl - NOW)
return { 'page', text(c.gate - 1), c.ended and '1' or '0', text(idle_in), entries }
