-- Sliding windows. What was counted in this window and, by the part of it that the last `ticks * tick` microseconds still
-- cover, in the one before. A count knows `current` and `previous`, its time `at`, and `offset`, how far that is ahead of the
-- server's. Parameters: requests, ticks, tick. Requests times ticks is at most 2^53.

local sliding = {}

function sliding.read(count, p)
  count.most, count.ticks, count.tick = tonumber(ARGV[p]), tonumber(ARGV[p + 1]), tonumber(ARGV[p + 2])
  count.at, count.offset, count.current, count.previous = now, 0, 0, 0
  local value = redis.call('GET', count.key) or ''
  local at, offset, current, previous = string.match(value, '^(%d+) (%d+) (%d+) (%d+)$')
  if previous then
    count.there = true
    count.at, count.offset, count.current, count.previous = tonumber(at), tonumber(offset), tonumber(current), tonumber(previous)
  end
  local length = count.ticks * count.tick
  local t, before = time_of(count), down(count.at, length)
  count.at, count.length, count.window = t, length, down(t, length)
  if count.window == before + 1 then
    count.previous, count.current = count.current, 0
  elseif count.window > before then
    count.previous, count.current = 0, 0
  end
  -- Ticks of this window that are over.
  count.over = down(t - count.window * length, count.tick)
end

-- What may still be counted, in ticks. Less than nothing after a debit.
local function room(count)
  return (count.most - count.current) * count.ticks - count.previous * (count.ticks - count.over)
end

function sliding.look(count)
  if count.cost > count.most then
    count.allowed, count.retry = false, -1
    return
  end
  count.allowed = count.cost * count.ticks <= room(count)
  if count.allowed then return end
  -- In this window, if the one before was all that is in the way; else in the next one.
  local start, free, before = count.window * count.length, count.most - count.cost - count.current, count.previous
  if free < 0 then start, free, before = start + count.length, count.most - count.cost, count.current end
  count.retry = start + (count.ticks - down(free * count.ticks, before)) * count.tick - count.at
end

function sliding.write(count)
  local value = string.format('%.0f %.0f %.0f %.0f', count.at, count.offset, count.current, count.previous)
  keep(count.key, value, (count.window + 2) * count.length - count.at)
end

function sliding.charge(count)
  count.current = math.min(count.current + count.cost, down(MOST, count.ticks))
  sliding.write(count)
end

function sliding.tell(count)
  local ends = count.at
  if count.current > 0 then
    ends = (count.window + 2) * count.length
  elseif count.previous > 0 then
    ends = (count.window + 1) * count.length
  end
  return down(math.max(room(count), 0), count.ticks), ends - count.at, count.window, 0, 0
end

-- In the window in which it was charged.
function sliding.refund(count, p)
  sliding.read(count, p)
  if not count.there then return end
  if count[1] == count.window then
    count.current = math.max(count.current - count.cost, 0)
  elseif count[1] == count.window - 1 then
    count.previous = math.max(count.previous - count.cost, 0)
  else
    return
  end
  sliding.write(count)
end
