-- The members, for who waits until they have acknowledged.
-- Returns: generation, term, last, now, replicas, member, record, member, record...

local function census(current, known, at)
  -- A write that changes nothing: what a WAIT then says is of replicas that follow still, not of what they had before.
  redis.call('HSET', list, '@', redis.call('HGET', list, '@'))
  local answer = {current, known, text(at), text(now), connected}
  local all = redis.call('HGETALL', list)
  for i = 1, #all, 2 do
    if all[i] ~= '@' then
      answer[#answer + 1] = all[i]
      answer[#answer + 1] = all[i + 1]
    end
  end
  return answer
end
