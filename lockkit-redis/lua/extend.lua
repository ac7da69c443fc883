-- Lets the lock be held for longer, if it is the token's. Never makes one, and never shortens it.
--
-- ARGV: 1 token, 2 TTL in ms
-- Returns 1 if it was done, 0 if nobody holds the lock, 2 if somebody else does.

local who, ttl = ARGV[1], tonumber(ARGV[2])

if not token then
  return 0
end
if token ~= who then
  return 2
end
if redis.call('PTTL', lock) < ttl then
  redis.call('PEXPIRE', lock, ttl)
end
return 1
