-- Reads a channel. Changes nothing.
-- ARGV: after (a sequence, or 0), count, max_bytes (no further envelopes once there are so many bytes)
-- Reply: page, released (how many envelopes the channel has), ended 0|1, idle_in ms, the stream's entries as XRANGE
--        gives them
--        conversation_not_found
local c = load_conversation()
if not c then
    return { 'conversation_not_found' }
end
local count, max_bytes = number(A.count), number(A.max_bytes)
local entries, bytes, after = {}, 0, A.after .. '-0'
while #entries < count and bytes < max_bytes do
    -- Few at a time: one reader of large results must not make everybody else wait.
    local some = redis.call('XRANGE', CHANNEL, '(' .. after, '+', 'COUNT', text(math.min(4, count - #entries)))
    if #some == 0 then
        break
    end
    for _, entry in ipairs(some) do
        entries[#entries + 1] = entry
        for _, value in ipairs(entry[2]) do
            bytes = bytes + #value
        end
        after = entry[1]
    end
end
local idle_in = math.max(0, c.touched_at + c.idle_ttl - NOW)
return { 'page', text(c.gate - 1), c.ended and '1' or '0', text(idle_in), entries }
