-- Takes tokens ahead, and gives back what is left of those taken before. KEYS: a bucket, its leases. ARGV: 1 the lease to end, as
-- id and tokens, or ''; 2 tokens of it that are unused; 3 id of the lease to begin; 4 tokens wanted, 5 its term; 6 the bucket's
-- parameters.
--
-- A lease may be spent at any time until it runs out, also all at once. So it is missing in the bucket from the start, and while
-- it lasts the bucket fills up only to what is below the burst by as much: what may be spent at one moment, by whomever, is never
-- more than the burst. Leases are a sorted set of id and tokens by when they run out, in the bucket's time.
--
-- Returns: whether the old lease was ended by this (1 or 0), tokens of the new one, what remains, when there will be a token, when
-- all is there again.

local count = { key = KEYS[1], cost = 1, retry = 0 }
bucket.parse(count, 6)
local t = time_of(count)

local function ended(lease)
  local tokens = tonumber(string.match(lease, ' (%d+)$'))
  count.held = math.max(count.held - tokens * count.unit, 0)
  return tokens
end

-- Those that have run out, in turn: what they reserved comes back from then on. What of them was not spent is lost.
local out = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', text(t), 'WITHSCORES')
for i = 1, #out, 2 do
  drain(count, tonumber(out[i + 1]))
  ended(out[i])
end
if #out > 0 then redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', text(t)) end
drain(count, t)

local returned = 0
if ARGV[1] ~= '' and redis.call('ZREM', KEYS[2], ARGV[1]) == 1 then
  returned = 1
  local tokens = ended(ARGV[1])
  count.used = math.max(count.used - math.min(tonumber(ARGV[2]), tokens) * count.unit, count.held)
end

local granted = math.min(tonumber(ARGV[4]), down(math.max(count.full - count.used, 0), count.unit))
if granted > 0 then
  local units, ends = granted * count.unit, t + tonumber(ARGV[5])
  count.used, count.held = count.used + units, count.held + units
  redis.call('ZADD', KEYS[2], text(ends), ARGV[3] .. ' ' .. text(granted))
end
local last = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if last[2] then
  count.ends = tonumber(last[2])
  redis.call('PEXPIRE', KEYS[2], text(up(count.ends - t, 1000) + SLACK))
else
  count.held, count.ends = 0, 0
end
bucket.write(count)

bucket.look(count)
local remaining, reset = bucket.tell(count)
return { returned, granted, remaining, count.retry, reset }
