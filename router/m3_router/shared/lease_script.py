"""The steps of the lease protocol that must be atomic, as scripts that Redis runs; `leases` says what they are for.

Owns the layout of what is in Redis, the scripts, and the form of their arguments and replies. Of one limit in one
window a hash holds, in whole numbers:

    REPLICA   "GRANTED USED"   what it may use in all, and what it had used when it last said so
    "-"       USED             by replicas that left, or that only others remember
    "?"       "REPLICA AMOUNT SINCE" who is in need of more than its share, and since when (milliseconds)

Who is in need goes first for NEED_MILLISECONDS; if the next one took its turn sooner, two that need the last of a limit
would take it from each other until its end.

One set lists the windows that are asked for, by when; one hash says of each replica which others it has adapted to.
Scripts are sent whole (EVAL): some proxies in front of Redis refuse to keep them. All keys have one hash tag.
"""

from typing import Final

import msgspec

NEED_MILLISECONDS: Final = 1000

# KEYS: the set of windows that are asked for, then windows. ARGV: this replica, the live ones joined by commas, whether
# to reply what is asked for; then for each window: limit, used, keep, held, want, gone, seconds to live, whether the
# use of the gone counts, whether to ask the others. Reply: what is asked for and when (a flat list); then for each
# window granted, what others have used, what of that the gone, and what another replica is in need of.
REGISTER: Final = (
    f"local need_milliseconds = {NEED_MILLISECONDS}"
    + """
local me, live, count = ARGV[1], {}, 0
for id in string.gmatch(ARGV[2], '[^,]+') do
  live[id] = true
  count = count + 1
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function whole(number) return string.format('%.0f', number) end
local granted_of = {}
for i = 2, #KEYS do
  local key, at = KEYS[i], 3 + 9 * (i - 2)
  local limit, used, keep = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local held, want, gone = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  local seconds, counts_gone, asks = ARGV[at + 7], ARGV[at + 8] == '1', ARGV[at + 9] == '1'
  local left_by_gone, gone_used, others_used, others_granted = 0, 0, 0, 0
  local registered, is_known, asker, amount, since = 0, false, nil, 0, 0
  local fields = redis.call('HGETALL', key)
  for f = 1, #fields, 2 do
    local name, value = fields[f], fields[f + 1]
    local first, second = string.match(value, '^(%S+) (%S+)$')
    if name == '-' then
      left_by_gone = tonumber(value)
    elseif name == '?' then
      asker, amount, since = string.match(value, '^(%S+) (%S+) (%S+)$')
      amount, since = tonumber(amount), tonumber(since)
      if asker ~= me and (not live[asker] or (want > 0 and now - since >= need_milliseconds)) then
        asker = nil
      end
    elseif name == me then
      is_known = true
    elseif live[name] then
      registered = registered + 1
      others_granted = others_granted + tonumber(first)
      others_used = others_used + tonumber(second)
    elseif counts_gone then
      gone_used = gone_used + tonumber(second)
    else
      redis.call('HDEL', key, name)
    end
  end
  gone_used = gone_used + left_by_gone
  if not is_known and gone > gone_used then
    redis.call('HSET', key, '-', whole(left_by_gone + gone - gone_used))
    gone_used = gone
  end
  local left = math.max(0, limit - gone_used - others_used - used)
  local share, yielded = math.floor(left / count), 0
  if want > 0 and (asker == nil or asker == me) then
    redis.call('HSET', key, '?', me .. ' ' .. whole(want) .. ' ' .. whole(asker and since or now))
    share = math.max(share, want)
  elseif asker == me then
    redis.call('HDEL', key, '?')
  elseif asker then
    yielded = amount
    share = math.floor(math.max(0, left - amount) / count)
  end
  local bound = limit - gone_used - others_granted
  if registered < count - 1 then
    bound = held
  end
  local granted = math.max(keep, math.min(used + share, bound))
  redis.call('HSET', key, me, whole(granted) .. ' ' .. whole(used))
  redis.call('EXPIRE', key, seconds)
  if asks then
    if granted - used < (want > 0 and want or math.ceil(share / 2)) then
      redis.call('ZADD', KEYS[1], now, key)
      redis.call('EXPIRE', KEYS[1], 60)
    else
      redis.call('ZREM', KEYS[1], key)
    end
  end
  granted_of[#granted_of + 1] = whole(granted)
  granted_of[#granted_of + 1] = whole(others_used + gone_used)
  granted_of[#granted_of + 1] = whole(gone_used)
  granted_of[#granted_of + 1] = whole(yielded)
end
local asked = {}
if ARGV[3] == '1' then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 2000)
  asked = redis.call('ZRANGE', KEYS[1], 0, 255, 'WITHSCORES')
end
return {asked, granted_of}
"""
)

# KEYS: the hash of views. ARGV: this replica, the live ones joined by commas, seconds to live. Reply: the hash, without
# those that are no more.
VIEW: Final = """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
local live = {}
for id in string.gmatch(ARGV[2], '[^,]+') do
  live[id] = true
end
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if not live[name] then
    redis.call('HDEL', KEYS[1], name)
  end
end
return redis.call('HGETALL', KEYS[1])
"""

# KEYS: windows. Reply: 1 for each that anybody has registered in, else 0.
KNOWN: Final = """
local known = {}
for i = 1, #KEYS do
  known[i] = redis.call('EXISTS', KEYS[i])
end
return known
"""

# KEYS: windows. ARGV: this replica, then for each window what it used (0 where the use of the gone does not count) and
# seconds to live.
LEAVE: Final = """
for i = 1, #KEYS do
  local used, seconds = ARGV[2 * i], ARGV[2 * i + 1]
  redis.call('HDEL', KEYS[i], ARGV[1])
  if used ~= '0' then
    redis.call('HINCRBY', KEYS[i], '-', used)
    redis.call('EXPIRE', KEYS[i], seconds)
  end
end
return 0
"""


class Claim(msgspec.Struct, frozen=True):
    """What a replica says of one window when it registers. keep: what it goes on using whatever comes of it."""

    key: str
    limit: int
    used: int
    keep: int
    held: int
    want: int
    gone: int
    seconds: int
    counts_gone: bool
    asks: bool

    def arguments(self) -> list[str | int]:
        """As the script takes them."""
        return [
            self.limit,
            self.used,
            self.keep,
            self.held,
            self.want,
            self.gone,
            self.seconds,
            int(self.counts_gone),
            int(self.asks),
        ]


class Granted(msgspec.Struct, frozen=True):
    """What has come of a claim."""

    granted: int
    others_used: int
    gone_used: int
    yielded: int


def decode_reply(reply: list[list[bytes]]) -> tuple[dict[str, str], list[Granted]]:
    """The keys that are asked for, each with a mark of that asking, and what came of each claim, in their order."""
    asked, numbers = reply
    marks = {asked[i].decode(): asked[i + 1].decode() for i in range(0, len(asked), 2)}
    values = [int(number) for number in numbers]
    return marks, [Granted(*values[i : i + 4]) for i in range(0, len(values), 4)]
