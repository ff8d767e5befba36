-- Takes members off the list that have been silent since they were counted, and had no lease by then: ARGV: member, beats, ...
for i = 1, #ARGV, 2 do
  local record = redis.call('HGET', KEYS[1], ARGV[i])
  if record and string.match(record, ' (%d+)$') == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
return redis.status_reply('OK')
