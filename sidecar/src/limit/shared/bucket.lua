-- Token buckets. A token counts `unit`, a microsecond brings `rate`. A count knows
--   used      what is missing in the bucket, which drains with time; more than all after a debit
--   at        when it was that, and `offset`, how far its time is ahead of the server's
--   held      what leases reserve: `used` does not drain below it. Until `ends`, when the last of them runs out
--   refunded  all that was ever given back by refunds
-- Parameters: burst, unit, rate.

local bucket = {}

-- In units of another size. Part of a token may be rounded, so this is as exact as a double.
local function converted(units, from, to, most)
  local rest = math.fmod(units, from)
  return math.min((units - rest) / from * to + math.floor(rest / from * to), most)
end

-- As it was last written.
function bucket.parse(count, p)
  count.burst, count.unit, count.rate = tonumber(ARGV[p]), tonumber(ARGV[p + 1]), tonumber(ARGV[p + 2])
  count.full = count.burst * count.unit
  count.used, count.at, count.offset, count.held, count.ends, count.refunded = 0, now, 0, 0, 0, 0
  local value = redis.call('GET', count.key) or ''
  local unit, used, at, offset, held, ends, refunded =
    string.match(value, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
  if not refunded then return end
  count.there = true
  count.used, count.at, count.offset = tonumber(used), tonumber(at), tonumber(offset)
  count.held, count.ends, count.refunded = tonumber(held), tonumber(ends), tonumber(refunded)
  unit = tonumber(unit)
  if unit ~= count.unit then
    -- The limit was changed, and what was spent stays so.
    count.used = converted(count.used, unit, count.unit, count.full)
    count.held = converted(count.held, unit, count.unit, count.full)
    count.refunded = converted(count.refunded, unit, count.unit, MOST)
  end
end

local function drain(count, t)
  if t <= count.at then return end
  -- Exact, or so much that there is no doubt: what is 2^53 or more is not rounded below it.
  local gain = (t - count.at) * count.rate
  count.used = gain >= count.used - count.held and count.held or count.used - gain
  count.at = t
end

-- As it is now. While a lease is left nothing is known of when others ran out, so all hold until the last does.
local function advance(count)
  local t = time_of(count)
  if count.held > 0 and count.ends <= t then
    drain(count, count.ends)
    count.held = 0
  end
  drain(count, t)
end

function bucket.read(count, p)
  bucket.parse(count, p)
  advance(count)
end

function bucket.look(count)
  if count.cost > count.burst then
    count.allowed, count.retry = false, -1
    return
  end
  -- Not used + cost > full: the sum may be more than a double holds.
  local lacking = count.used - (count.full - count.cost * count.unit)
  count.allowed = lacking <= 0
  if count.allowed then return end
  count.retry = up(lacking, count.rate)
  if count.held > 0 and lacking > count.used - count.held then count.retry = math.max(count.retry, count.ends - count.at) end
end

function bucket.write(count)
  local rest = math.max(up(count.used, count.rate), count.ends - count.at)
  local value = string.format('%.0f %.0f %.0f %.0f %.0f %.0f %.0f', count.unit, count.used, count.at, count.offset, count.held,
    count.ends, count.refunded)
  keep(count.key, value, rest)
end

function bucket.charge(count)
  count.used = math.min(count.used + count.cost * count.unit, MOST)
  bucket.write(count)
end

function bucket.tell(count)
  local room = math.max(count.full - count.used, 0)
  local reset = up(count.used, count.rate)
  if count.held > 0 then reset = math.max(reset, count.ends - count.at) end
  return down(room, count.unit), reset, count.at, count.used - count.held, count.refunded
end

-- Gives back only what would be there by now if it had not been charged: a bucket that was nearly full would have been full
-- since. Of what was drainable after the charge, that is at least what neither time nor other refunds have taken away. It may be
-- more, so a bucket that is nearly full may get back less than was charged.
function bucket.refund(count, p)
  bucket.read(count, p)
  local since, others = count.at - count[1], count.refunded - count[3]
  if not count.there or since < 0 or others < 0 then return end
  local back = math.min(count.cost * count.unit, count[2] - others - since * count.rate, count.used - count.held)
  if back <= 0 then return end
  count.used, count.refunded = count.used - back, count.refunded + back
  if count.refunded > MOST then count.refunded = 0 end
  bucket.write(count)
end
