-- Requests are still under way. KEYS: their slots. ARGV: 1 term, then their ids. Returns how many of them had been given up for
-- lost; they have their slots again, for they are there.

local back, ends = 0, text(now + tonumber(ARGV[1]))
for i = 2, #ARGV do back = back + redis.call('ZADD', KEYS[1], ends, ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], text(up(tonumber(ARGV[1]), 1000) + SLACK))
return back
