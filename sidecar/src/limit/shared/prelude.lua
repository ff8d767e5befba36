-- What all scripts of limits share. All numbers are whole, and at most 2^53 where they decide: the doubles of Lua hold every
-- such number exactly. Times are in microseconds.

local MOST = 9007199254740992
-- How long a count is kept when it has nothing to say any more, in milliseconds.
local SLACK = 1000

local function text(number) return string.format('%.0f', number) end

-- Quotients of whole numbers, rounded down and up. a / b itself may be rounded up to a whole number, so its floor is no use.
local function down(a, b) return (a - math.fmod(a, b)) / b end
local function up(a, b)
  local rest = math.fmod(a, b)
  return (a - rest) / b + (rest > 0 and 1 or 0)
end

-- The server's time, which may step.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- The time of a count, which goes as the server's does but never back: where that steps back, the count's stands still for a
-- moment and is ahead by an offset from then on. Such a step is to be remembered, whatever is decided.
local function time_of(count)
  local t = now + count.offset
  if t >= count.at then return t end
  count.offset = count.offset + (count.at - t)
  count.moved = true
  return count.at
end

local function keep(key, value, for_so_long) redis.call('SET', key, value, 'PX', text(up(for_so_long, 1000) + SLACK)) end

-- Every kind of limit is a table of functions on a count, which has a key and a cost:
--   read(count, p)   reads it, as it is now; its parameters are ARGV[p] and what follows
--   look(count)      sets `allowed`, and if it is not, `retry`: when the cost will be there. -1: nobody knows, or never
--   charge(count)    takes the cost, and writes
--   write(count)     writes what was read
--   tell(count)      returns what remains, when all will be there again, and three numbers that a refund needs
--   refund(count, p) gives the cost back that was charged when those three numbers were told: count[1], count[2], count[3]
