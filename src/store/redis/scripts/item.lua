-- The stored form of a work item. An awaiting item: the fields of ITEM. A settled item: the same, then the fields of
-- SETTLEMENT, the reason as a JSON string or nothing, and the outcome. The last byte of both forms is the outcome.

-- Time at which it times out (ms), replay window (ms), id, issued at (text), date of the timeout (stored, because the
-- date table of a later step may no longer contain it); then, each preceded by its length, the signing key's id, the
-- traceparent, the members of the envelope that are known at issue, and the fields of HEARTBEAT or nothing; at the end
-- AWAITING. Without HEARTBEAT, the item times out at its deadline.
local ITEM = '>I6I4c36c24c10Bc0Bc0I2c0Bc0B'
-- Present if an item has a heartbeat timeout or has had a heartbeat: deadline, heartbeat timeout (0 without one), last
-- heartbeat (0 before the first), last published progress (0 before the first), all in ms.
local HEARTBEAT = '>I6I4I6I6'
-- Received at (text), attempt, size of the result in bytes; then, each preceded by its length, the id and the
-- traceparent of the request that settled the item.
local SETTLEMENT = '>c24c8I4Bc0Bc0'

local byte, char = string.byte, string.char
local AWAITING, SUCCEEDED, FAILED, TIMED_OUT, CANCELLED = 0, 1, 2, 3, 4

local function id_of(item)
    return sub(item, 11, 46)
end

-- The deadline rule: from the time at which it times out, an awaiting item counts as timed out, even if the sweeper has
-- not processed it yet.
local function outcome_at(item, now)
    local outcome = byte(item, -1)
    if outcome == AWAITING and now >= decode('>I6', item) then
        return TIMED_OUT
    end
    return outcome
end

-- The attempt that settled an item (8 bytes). The item must be settled.
local function settled_by(item)
    local at = select(11, decode(ITEM, item))
    return sub(item, at + 24, at + 31)
end
