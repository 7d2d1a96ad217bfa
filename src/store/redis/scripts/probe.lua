-- Runs every command that the scripts and the announcements of timers use, so that a missing permission is found at
-- startup and not in the middle of a script. Leaves no key behind. Does not use clock.lua or conversation.lua.
-- KEYS: 1 an unused key
-- ARGV: 1 a pub/sub channel without subscribers
-- Reply: a flat list: for each command that failed, its name and its error
local key, errors = KEYS[1], {}
local function try(...)
    local answer = redis.pcall(...)
    local failed = type(answer) == 'table' and answer.err
    if failed then
        errors[#errors + 1] = (...)
        errors[#errors + 1] = failed
    end
    return not failed
end
try('TIME')
try('GET', key)
try('HGET', key, 'x')
try('HMGET', key, 'x')
try('HDEL', key, 'x')
try('ZCARD', key)
try('ZSCORE', key, 'x')
try('XRANGE', key, '-', '+', 'COUNT', '1')
try('ZRANGE', key, '0', '0')
try('ZREM', key, 'x')
try('PEXPIRE', key, '1')
-- These commands do not create the key.
try('SET', key, '', 'XX', 'PX', '1')
try('ZADD', key, 'XX', '1', 'x')
try('XADD', key, 'NOMKSTREAM', '*', 'x', '')
try('PUBLISH', ARGV[1], '')
-- These commands create the key. They run only if UNLINK can remove it.
if try('UNLINK', key) then
    try('HSET', key, 'x', '')
    try('HINCRBY', key, 'y', '1')
    redis.call('UNLINK', key)
    try('SADD', key, 'x')
    try('SMEMBERS', key)
    redis.call('UNLINK', key)
end
return errors
