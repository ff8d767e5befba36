-- What all scripts of the purge log share. KEYS: the log (a stream), the list of members (a hash). ARGV[1]: 16 random hex
-- digits. Every script begins a generation or a term where one is due, so that nobody ever works on what was lost.

local log, list = KEYS[1], KEYS[2]
local fresh = ARGV[1]
-- Beyond it, the doubles of Lua are not exact.
local LAST_PLACE = 9007199254740990

local function text(number) return string.format('%.0f', number) end

-- Microseconds. May step; never decides who has a lease.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- Replication has a new id after each start and each promotion, so it names a history of writes.
local replication = redis.pcall('INFO', 'replication')
local history, connected = nil, '0'
if type(replication) == 'string' then
  history = string.match(replication, 'master_replid:(%x+)')
  connected = string.match(replication, 'connected_slaves:(%d+)') or '0'
end
history = history and string.sub(history, 1, 16)
local prefix = history or '0000000000000000'

local function place(id) return tonumber(string.match(id, '^(%d+)')) end

-- The generation that the log is in, and the place of the last record. Begins one if the log is missing, was carried to
-- another history, is full, or knows less than the member that asks.
local function generation(claimed, claimed_at)
  local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  local before, last, current = nil, 0, nil
  if newest then
    last, current = place(newest[1]), newest[2][2]
    local regressed = claimed == current and claimed_at > last
    if string.sub(current, 1, 16) == prefix and not regressed and last < LAST_PLACE then return current, last end
    before = current .. ' ' .. text(last)
  end
  if not newest or last >= LAST_PLACE then
    redis.call('DEL', log)
    before, last = nil, 0
  end
  current = prefix .. fresh
  local at = math.max(now, last + 1)
  redis.call('XADD', log, text(at) .. '-0', 'g', current, 'e', before and ('begin ' .. before) or 'begin')
  return current, at
end

local function begin_term(current) redis.call('HSET', list, '@', current .. ' ' .. prefix .. fresh) end

-- The term of the list, or nothing if it can't be told from one of another history.
local function term(current)
  local held = redis.call('HGET', list, '@')
  if not held or string.sub(held, 1, 32) ~= current then
    begin_term(current)
    held = redis.call('HGET', list, '@')
  end
  return history and string.sub(held, 34) or ''
end

-- A member's record: generation ('-' for none), place, when it was reached, when it was seen, beats.
local function parsed(record)
  local claimed, at, since, seen, beats = string.match(record, '^(%S+) (%d+) (%d+) (%d+) (%d+)$')
  if not beats then return nil end
  return { claimed = claimed, at = at, since = since, seen = tonumber(seen), beats = tonumber(beats) }
end
