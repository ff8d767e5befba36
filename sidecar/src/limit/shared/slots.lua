-- Requests under way: a sorted set of their ids by when they are given up for lost, by the server's time. A request takes one
-- slot, whatever it costs, and none if it costs nothing. Parameters: slots, term.

local slots = {}

-- Slots that are looked after in one call when the time stepped back.
local BATCH = 100

function slots.read(count, p)
  count.most, count.term = tonumber(ARGV[p]), tonumber(ARGV[p + 1])
end

function slots.look(count)
  redis.call('ZREMRANGEBYSCORE', count.key, '-inf', text(now))
  -- Nobody takes one for longer than a term, so the time stepped back: their term begins now.
  local ends = text(now + count.term)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', count.key, '(' .. ends, '+inf', 'LIMIT', 0, BATCH)) do
    redis.call('ZADD', count.key, ends, id)
  end
  count.taken = redis.call('ZCARD', count.key)
  count.allowed = count.cost == 0 or count.taken < count.most
  if not count.allowed then count.retry = -1 end
end

function slots.write() end

function slots.charge(count)
  count.taken = count.taken + 1
  redis.call('ZADD', count.key, text(now + count.term), ARGV[1])
  redis.call('PEXPIRE', count.key, text(up(count.term, 1000) + SLACK))
end

function slots.tell(count)
  return math.max(count.most - count.taken, 0), 0, 0, 0, 0
end

function slots.refund(count)
  redis.call('ZREM', count.key, ARGV[1])
end
