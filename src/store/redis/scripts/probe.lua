-- Tries every command that the scripts use, so that none of them is refused one halfway. Leaves nothing behind. Stands
-- alone.
-- KEYS: a key that nothing is kept under
-- ARGV: a pub/sub channel that nobody listens to
-- Reply: a command and the error it met, in turn
local key, met = KEYS[1], {}
local function try(...)
    local answer = redis.pcall(...)
    local failed = type(answer) == 'table' and answer.err
    if failed then
        met[#met + 1] = (...)
        met[#met + 1] = failed
    end
    return not failed
end
try('TIME')
try('GET', key)
try('HGET', key, 'x')
try('HMGET', key, 'x')
try('HDEL', key, 'x')
try('ZCARD', key)
try('XRANGE', key, '-', '+', 'COUNT', '1')
try('ZRANGE', key, '0', '0')
try('ZREM', key, 'x')
try('PEXPIRE', key, '1')
-- None of these makes the key.
try('SET', key, '', 'XX', 'PX', '1')
try('ZADD', key, 'XX', '1', 'x')
try('XADD', key, 'NOMKSTREAM', '*', 'x', '')
try('PUBLISH', ARGV[1], '')
-- These do.
if try('UNLINK', key) then
    try('HSET', key, 'x', '')
    try('HINCRBY', key, 'y', '1')
    redis.call('UNLINK', key)
end
return met
