-- The beginning of every script, but for the steps that have a shorter way where it is enough.
--
-- KEYS, all in one hash slot:
--   1 lock     string      "lockkit1", the holder's token (16 bytes), the fence, ":", what the holder says of himself;
--                          its TTL is what the lease has left
--   2 counter  string      the fence of the last grant, in digits; no TTL
--   3 line     sorted set  the token of each who waits in line, by his number
--   4 places   hash        by token: until when the place is kept (server's time, ms), ":", the inbox of his process,
--                          ":", what he says of himself
--
-- The first key's name is also the channel on which a release is published. A grant to one in line is published on the
-- channel of his process' inbox, for all keys the same: his token, and the fence. What is published is a hint: a server
-- that lets nobody publish does all else. Numbers over 2^53 are never Lua's: fences are compared and counted as text.

local lock, counter, line, places = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local token, fence, owner

local value = redis.call('GET', lock)
if value then
  if string.sub(value, 1, 8) ~= 'lockkit1' then
    return redis.error_reply('LOCKKIT the key of the lock is in use for other data')
  end
  local colon = string.find(value, ':', 25, true)
  token = string.sub(value, 9, 24)
  fence = string.sub(value, 25, colon - 1)
  owner = string.sub(value, colon + 1)
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Gives the lock, which is free, to `to` for `ttl` ms. The grant's number, or nothing if the counter is none.
local function grant(to, ttl, says)
  local number = time[1] .. string.format('%06d', time[2])
  local last = redis.call('GET', counter)
  if last and not string.find(last, '^%d+$') then
    return nil
  end
  if not last or #last < #number or (#last == #number and last < number) then
    redis.call('SET', counter, number)
  else
    redis.call('INCR', counter)
    number = redis.call('GET', counter)
  end
  redis.call('SET', lock, 'lockkit1' .. to .. number .. ':' .. says, 'PX', ttl)
  return number
end

local NO_COUNTER = 'LOCKKIT the counter of the fences is no number'

local function leave(who)
  redis.call('ZREM', line, who)
  redis.call('HDEL', places, who)
end

-- Who of those who live is first in line, for how many ms his place is kept from now, what he says of himself, and his
-- inbox. The dead before him go.
local function first()
  while true do
    local who = redis.call('ZRANGE', line, 0, 0)[1]
    if not who then
      return nil
    end
    local kept, rest = string.match(redis.call('HGET', places, who) or '', '^(%d+):(.*)$')
    local left = kept and tonumber(kept) - now
    if left and left > 0 then
      -- Who has said nothing of an inbox lives all the same, and is told nothing.
      local inbox, says = string.match(rest, '^(%x*):(.*)$')
      return who, left, says or rest, inbox or ''
    end
    leave(who)
  end
end

-- Gives the lock, which is free, to the first in line, for what his place has left, and tells him: if he is dead, that is
-- all that those behind him wait for. The grant's number, as of `grant`.
local function pass(who, left, says, inbox)
  local number = grant(who, left, says)
  if number then
    leave(who)
    redis.pcall('PUBLISH', string.match(lock, '^[^{]*') .. '{inbox}:' .. inbox, who .. number)
  end
  return number
end
