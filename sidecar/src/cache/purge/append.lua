-- Appends a purge. ARGV: 2 content, 3 '1' if the log may have it already, 4 records at most, 5 how long they are kept (us),
-- 6 channel for the news. Returns a census, with the purge's place.

local content = ARGV[2]
local current, last = generation('', 0)
local known = term(current)
local at = nil

if ARGV[3] == '1' then
  for _, record in ipairs(redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1000)) do
    if record[2][4] == content then
      at = place(record[1])
      break
    end
  end
end
if not at then
  at = math.max(now, last + 1)
  -- Before it is added, so that what every member has read stays, and no member takes the cut for a loss.
  redis.call('XTRIM', log, 'MINID', text(math.min(math.max(now - tonumber(ARGV[5]), 0), last)) .. '-0')
  redis.call('XADD', log, 'MAXLEN', ARGV[4], text(at) .. '-0', 'g', current, 'e', content)
end
redis.call('PUBLISH', ARGV[6], text(at))
return census(current, known, at)
