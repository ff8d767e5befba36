-- Windows of a calendar. A count knows the window that it is of, `from` and `to`, and what was counted in it. Who counts first in
-- a window says how long that is. Parameters: quota, start and end of the window that may be now, end of the one after it.

local fixed = {}

local function stored(count)
  local from, to, counted = string.match(redis.call('GET', count.key) or '', '^(%d+) (%d+) (%d+)$')
  if not counted then return false end
  count.from, count.to, count.counted = tonumber(from), tonumber(to), tonumber(counted)
  return true
end

-- Sets `foreign` if it is neither of the windows now.
function fixed.read(count, p)
  count.quota = tonumber(ARGV[p])
  local there = stored(count)
  if there and count.from <= now and now < count.to then return end
  -- If the server's time stepped back before the window, what was counted in it counts now.
  local back = there and now < count.from
  count.counted, count.moved = back and count.counted or 0, back
  count.from, count.to = tonumber(ARGV[p + 1]), tonumber(ARGV[p + 2])
  if now >= count.to then count.from, count.to = count.to, tonumber(ARGV[p + 3]) end
  count.foreign = now < count.from or now >= count.to
end

function fixed.look(count)
  count.allowed = count.cost <= count.quota - count.counted
  if not count.allowed then count.retry = count.cost > count.quota and -1 or count.to - now end
end

function fixed.write(count)
  keep(count.key, string.format('%.0f %.0f %.0f', count.from, count.to, count.counted), count.to - now)
end

function fixed.charge(count)
  count.counted = math.min(count.counted + count.cost, MOST)
  fixed.write(count)
end

function fixed.tell(count)
  return math.max(count.quota - count.counted, 0), count.counted > 0 and count.to - now or 0, count.from, 0, 0
end

-- If it is still the window in which it was charged.
function fixed.refund(count)
  if not stored(count) or count.from ~= count[1] then return end
  count.counted = math.max(count.counted - count.cost, 0)
  redis.call('SET', count.key, string.format('%.0f %.0f %.0f', count.from, count.to, count.counted), 'KEEPTTL')
end
