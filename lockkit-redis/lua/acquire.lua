-- Takes the lock for a token, if it can be had.
--
-- ARGV: 1 token, 2 TTL in ms, 3 what the holder says of himself, 4 for how long a place in line is kept, in ms, or 0,
-- 5 the inbox, in hexadecimal digits
-- Returns {1, fence}, or {0, ms that the lease has left, fence, owner} of whoever has it.
-- Cost without a line: GET, TIME, ZRANGE, GET, SET, SET. May be repeated: the same token gets the same fence.

local who, ttl, says, stay, inbox = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), ARGV[5]

if token == who then
  -- Also what the first in line finds, whom the lock was given to.
  if redis.call('PTTL', lock) < ttl then
    redis.call('PEXPIRE', lock, ttl)
  end
  return { 1, fence }
end

if not token then
  local head, left, said, his = first()
  if not head or head == who then
    fence = grant(who, math.max(ttl, left or 0), said or says)
    if not fence then
      return redis.error_reply(NO_COUNTER)
    end
    if head then
      leave(who)
    end
    return { 1, fence }
  end
  -- Its holder has expired, and somebody else is first.
  fence = pass(head, left, said, his)
  if not fence then
    return redis.error_reply(NO_COUNTER)
  end
  owner = said
end

if stay > 0 then
  local last = redis.call('ZREVRANGE', line, 0, 0, 'WITHSCORES')[2]
  redis.call('ZADD', line, 'NX', (tonumber(last) or 0) + 1, who)
  redis.call('HSET', places, who, string.format('%.0f:', now + stay) .. inbox .. ':' .. says)
  -- What nobody asks for any more goes by itself.
  for _, key in ipairs({ line, places }) do
    if redis.call('PTTL', key) < stay then
      redis.call('PEXPIRE', key, stay)
    end
  end
end

return { 0, redis.call('PTTL', lock), fence, owner }
