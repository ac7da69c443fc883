-- Looks at the lock, without changing anything.
--
-- Returns {ms that the lease has left, fence, owner, how many live in line}, or nothing if nobody holds it.

if not token then
  return false
end
local waiting = 0
for _, place in ipairs(redis.call('HVALS', places)) do
  if tonumber(string.match(place, '^%d+')) > now then
    waiting = waiting + 1
  end
end
return { redis.call('PTTL', lock), fence, owner, waiting }
