-- Gives back what a pass charged, once. KEYS: the counts that it charged, and last the mark that says it was done. ARGV: 1 id of
-- the charge, 2 how long the mark stays, in milliseconds; then of each count its kind, its cost, the three numbers that the pass
-- told, and three parameters. Returns 1, or 0 if it had been done.

local kinds = { b = bucket, w = sliding, f = fixed, s = slots }
local STRIDE = 8

if not redis.call('SET', KEYS[#KEYS], '1', 'NX', 'PX', ARGV[2]) then return 0 end
for i = 1, #KEYS - 1 do
  local p = 3 + (i - 1) * STRIDE
  local count = { tonumber(ARGV[p + 2]), tonumber(ARGV[p + 3]), tonumber(ARGV[p + 4]), key = KEYS[i], cost = tonumber(ARGV[p + 1]) }
  kinds[ARGV[p]].refund(count, p + 5)
end
return 1
