-- A work item as it is stored: what is fixed at its issue and, once it has an outcome, its settlement.

-- Outcome (a byte), deadline, replay window (ms), id, issued at (text), date of the deadline; then, each after its length,
-- the signing key's id, the trace that it was issued in, and the members of its envelope that are known at issue.
local ITEM = '>BI6I4c36c24c10Bc0Bc0I2c0'
-- Received at (text), attempt, bytes of the result; then, each after its length, the request and the trace that
-- settled it.
local SETTLEMENT = '>c24c8I4Bc0Bc0'

local AWAITING, SUCCEEDED, FAILED, TIMED_OUT, CANCELLED = 0, 1, 2, 3, 4

local function id_of(item)
    return sub(item, 12, 47)
end

-- The rule of deadlines: an item that nothing has settled is timed out from its deadline on, swept or not.
local function outcome_at(item, now)
    local outcome, deadline = decode('>BI6', item)
    if outcome == AWAITING and now >= deadline then
        return TIMED_OUT
    end
    return outcome
end

-- The attempt that settled an item.
local function settled_by(item)
    local at = select(10, decode(ITEM, item))
    return sub(item, at + 24, at + 31)
end
