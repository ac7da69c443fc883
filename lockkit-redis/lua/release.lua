-- Takes the lock from the token, if it is his, and the token out of the line. The lock goes to the first of those who
-- are left in line; if there is nobody, it is free, and all who listen are told.
--
-- ARGV: 1 token
-- Returns 1 if it was done, 0 if nobody held the lock, 2 if somebody else does.
-- Cost without a line: GET, TIME, ZREM, ZRANGE, DEL, PUBLISH.

local who = ARGV[1]

if redis.call('ZREM', line, who) == 1 then
  redis.call('HDEL', places, who)
end
if token and token ~= who then
  return 2
end

local head, left, said, inbox = first()
-- A counter that is no number keeps nobody from giving back what he has.
if not (head and pass(head, left, said, inbox)) and token then
  redis.call('DEL', lock)
  redis.pcall('PUBLISH', lock, '')
end
return token and 1 or 0
