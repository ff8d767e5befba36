-- A member's beat. ARGV: 2 member, 3 generation applied or '-', 4 place applied, 5 records a page, 6 silence after which a member is
-- dropped (us), 7 members at most, 8 seconds after which an abandoned scope is forgotten.
-- Returns: generation, term, tail, last, {place, generation, content}...

local member, claimed, at = ARGV[2], ARGV[3], ARGV[4]
local silence, most, abandoned = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]

local current, last = generation(claimed, tonumber(at))
local known = term(current)

-- One other member, at random. By the server's clock, so it may be wrong: hence the new term, which makes purges wait for
-- whoever is not listed. A beat later the member is listed again.
local some = redis.call('HRANDFIELD', list, 1, 'WITHVALUES')
if some[1] and some[1] ~= '@' and some[1] ~= member then
  local record = parsed(some[2])
  if not record or now - record.seen > silence then
    redis.call('HDEL', list, some[1])
    begin_term(current)
    known = term(current)
  elseif record.seen - now > silence then
    -- The clock stepped back: its silence begins now.
    redis.call('HSET', list, some[1], table.concat({record.claimed, record.at, record.since, text(now), text(record.beats)}, ' '))
  end
end

local held = redis.call('HGET', list, member)
if not held and redis.call('HLEN', list) > most then return redis.error_reply('FULL this scope has as many members as it can') end
local before = held and parsed(held)
local since, beats = text(now), 1
if before then
  beats = before.beats + 1
  if before.claimed == claimed and before.at == at then since = before.since end
end
redis.call('HSET', list, member, table.concat({claimed, at, since, text(now), text(beats)}, ' '))
redis.call('EXPIRE', log, abandoned)
redis.call('EXPIRE', list, abandoned)

local tail = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
local from = '-'
if claimed == current then from = '(' .. at .. '-0' end
local answer = {current, known, text(place(tail[1])), text(last)}
for _, record in ipairs(redis.call('XRANGE', log, from, '+', 'COUNT', ARGV[5])) do
  answer[#answer + 1] = {text(place(record[1])), record[2][2], record[2][4]}
end
return answer
