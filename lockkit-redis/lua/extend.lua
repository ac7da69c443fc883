-- Lets locks be held for longer, each if it is its token's. Never makes one, and never shortens one.
--
-- KEYS: the locks. ARGV: for each its token, and a TTL in ms.
-- Returns for each 1 if it was done, 0 if nobody holds it, 2 if somebody else does, or why it cannot be said.
-- Cost of each: GET, PTTL, PEXPIRE.

local answers = {}
for at, lock in ipairs(KEYS) do
  local who, ttl = ARGV[2 * at - 1], tonumber(ARGV[2 * at])
  local value = redis.pcall('GET', lock)
  if not value then
    answers[at] = 0
  elseif type(value) == 'table' then
    answers[at] = value
  elseif string.sub(value, 1, 8) ~= 'lockkit1' then
    answers[at] = redis.error_reply('LOCKKIT the key of the lock is in use for other data')
  elseif string.sub(value, 9, 24) ~= who then
    answers[at] = 2
  else
    if redis.call('PTTL', lock) < ttl then
      redis.call('PEXPIRE', lock, ttl)
    end
    answers[at] = 1
  end
end
return answers
