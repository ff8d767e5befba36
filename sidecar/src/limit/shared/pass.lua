-- One pass: all limits of a request are checked, then all are charged, or none. KEYS: the counts, each one once. ARGV: 1 id of the
-- charge; then of each limit its kind, its mode, its cost, and four parameters.
--
-- Mode `e` (Enforce): may deny the request. `s` (Shadow): denies nothing; it is charged if it would have allowed a request that
-- nothing else denies, as if it were in force, and otherwise only says what it would have done. `d` (Debit): is charged also if
-- that is more than there is, for what is known only afterwards. What costs nothing is looked at and left as it is.
--
-- Returns: the first limit that denies, or 0, or -1 if a window of a calendar is not of this time; now; then of each limit: whether
-- it allows (1 or 0), what remains, when to try again, when all is there again, and three numbers for a refund.

local kinds = { b = bucket, w = sliding, f = fixed, s = slots }
local STRIDE = 7

local counts, denied = {}, 0
for i, key in ipairs(KEYS) do
  local p = 2 + (i - 1) * STRIDE
  local count = { kind = kinds[ARGV[p]], key = key, mode = ARGV[p + 1], cost = tonumber(ARGV[p + 2]), retry = 0 }
  count.kind.read(count, p + 3)
  if count.foreign then return { -1, now } end
  counts[i] = count
end
for i, count in ipairs(counts) do
  count.kind.look(count)
  if count.mode == 'e' and not count.allowed and denied == 0 then denied = i end
end

local answer = { denied, now }
for _, count in ipairs(counts) do
  if denied == 0 and count.cost > 0 and (count.allowed or count.mode == 'd') then
    count.kind.charge(count)
  elseif count.moved then
    count.kind.write(count)
  end
  local remaining, reset, one, two, three = count.kind.tell(count)
  local verdict = { count.allowed and 1 or 0, remaining, count.retry, reset, one, two, three }
  for _, number in ipairs(verdict) do answer[#answer + 1] = number end
end
return answer
