-- Takes one result, as the hand-written peers do: each work item is answered once, in no order.
-- KEYS: work item, mark of the answered item, channel. ARGV: result, how long the mark is kept (ms).
-- Replies: delivered, repeated, unknown.
local item = redis.call('GET', KEYS[1])
if not item then
  return redis.call('EXISTS', KEYS[2]) == 1 and 'repeated' or 'unknown'
end
if not redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[2]) then
  return 'repeated'
end
redis.call('XADD', KEYS[3], '*', 'item', item, 'result', ARGV[1])
redis.call('DEL', KEYS[1])
return 'delivered'
