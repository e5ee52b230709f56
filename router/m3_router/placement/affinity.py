"""Which worker holds which prefix, as far as this replica knows: the local index, and session pins.

Owns the map from a block's digest to the workers that hold it, and the slots: every life (epoch) of a worker has one, a
bit in the masks of the map. A worker that restarts gets another slot, so that all it held is forgotten at once and
nothing is searched for. What is known comes from this replica's own dispatches (`record`), from other replicas
(`apply`), and from the engines' own events (`removed`, `cleared`).

Two generations bound the memory: when the young one is full it becomes the old one, and the old one is dropped; what is
used meanwhile is copied up. After two such turns no bit that was written before them is left, and only then is a
retired slot given to another worker. A chain is prefix-closed (who holds a block holds those before it, because engines
evict leaves first), so that the deepest block is found by halving; a hole costs a placement at worst.
"""

import heapq
from collections.abc import Container, Sequence
from typing import Final

from mypy_extensions import mypyc_attr
from xxhash import xxh3_64_intdigest

from m3_router.config.services import AffinitySettings

# Lives of workers that wait for their bits to age out. More of them (a crash loop) end a generation early, so that
# masks stay short.
MAX_RETIRED_SLOTS: Final = 64
MAX_SESSIONS: Final = 100_000  # in each of two generations


@mypyc_attr(free_list_len=1)
class Matches:
    """How many leading blocks of one chain each slot holds."""

    __slots__ = ("_blocks", "_masks", "blocks")

    def __init__(self, masks: list[int], blocks: list[int]) -> None:
        self._masks = masks  # disjoint
        self._blocks = blocks
        self.blocks = blocks[0] if blocks else 0  # the most that any slot holds

    def of(self, slot: int) -> int:
        """The blocks that a slot holds."""
        if slot >= 0:
            for i in range(len(self._masks)):
                if self._masks[i] >> slot & 1:
                    return self._blocks[i]
        return 0


NO_MATCHES: Final = Matches([], [])


class Life:
    """One epoch of one worker, and the slot that stands for it. `serial` tells it from others in the same slot."""

    __slots__ = ("epoch", "serial", "slot")

    def __init__(self, epoch: str, slot: int, serial: int) -> None:
        self.epoch = epoch
        self.slot = slot
        self.serial = serial


class Holder:
    """A worker: the life that this replica believes in, and a later one that only others have told of yet."""

    __slots__ = ("current", "is_observed", "told")

    def __init__(self, current: Life, is_observed: bool) -> None:
        self.current = current
        self.is_observed = is_observed
        self.told: Life | None = None


class Affinity:
    """The index of one pool. Digests are 64 bits; a slot is a small number, or -1 for none."""

    __slots__ = (
        "_dying",
        "_free",
        "_generation",
        "_generation_blocks",
        "_holders",
        "_live",
        "_next_slot",
        "_old",
        "_old_pins",
        "_pins",
        "_retired",
        "_serial",
        "_serials",
        "_session_seconds",
        "_young",
    )

    def __init__(self, settings: AffinitySettings) -> None:
        self._generation_blocks = settings.index_blocks
        self._session_seconds = settings.session_seconds
        self._young: dict[int, int] = {}  # digest -> mask of slots
        self._old: dict[int, int] = {}
        self._dying: dict[int, int] = {}  # a dropped generation, freed a little at a time
        self._generation = 0
        self._holders: dict[str, Holder] = {}  # by the worker's uid
        self._live = 0  # mask of the slots whose bits count
        self._serials: dict[int, int] = {}  # slot -> serial of the life it stands for; live ones alone
        self._serial = 0
        self._free: list[int] = []
        self._retired: list[tuple[int, int]] = []  # (generation, slot), oldest first
        self._next_slot = 0
        self._pins: dict[int, tuple[int, int, float]] = {}  # session -> slot, serial, until
        self._old_pins: dict[int, tuple[int, int, float]] = {}

    def __len__(self) -> int:
        """Blocks in both generations; those that were copied up count twice."""
        return len(self._young) + len(self._old)

    @property
    def slots(self) -> int:
        """Slots that stand for a worker now."""
        return len(self._serials)

    # ---- workers

    def slot_of(self, uid: str, epoch: str) -> int:
        """The slot of a worker that this replica has seen in this epoch. Another epoch than before holds nothing."""
        holder = self._holders.get(uid)
        if holder is None:
            holder = self._holders[uid] = Holder(self._begin(epoch), is_observed=True)
        elif holder.current.epoch != epoch:
            self._end(holder.current)
            told = holder.told
            holder.told = None
            if told is not None and told.epoch == epoch:  # others were quicker, and what they told counts from here on
                holder.current = told
            else:
                if told is not None:
                    self._end(told)
                holder.current = self._begin(epoch)
        holder.is_observed = True
        return holder.current.slot

    def retire(self, slot: int) -> None:
        """The worker has left. What it held is forgotten at once."""
        for uid, holder in self._holders.items():
            if holder.current.slot == slot:
                self._end(holder.current)
                if holder.told is not None:
                    self._end(holder.told)
                del self._holders[uid]
                return

    def retire_unseen(self, uids: Container[str]) -> None:
        """Let go of workers that others have told of, and that are not among these."""
        unseen = [holder for uid, holder in self._holders.items() if not holder.is_observed and uid not in uids]
        for holder in unseen:
            self.retire(holder.current.slot)

    def cleared(self, slot: int) -> int:
        """The worker lives, and its cache is empty. Returns the slot that stands for it from here on."""
        for holder in self._holders.values():
            if holder.current.slot == slot:
                self._end(holder.current)
                holder.current = self._begin(holder.current.epoch)
                return holder.current.slot
        return slot

    def _begin(self, epoch: str) -> Life:
        if self._free:
            slot = heapq.heappop(self._free)  # the lowest: masks stay short
        else:
            slot = self._next_slot
            self._next_slot += 1
        self._serial += 1
        self._serials[slot] = self._serial
        self._live |= 1 << slot
        return Life(epoch, slot, self._serial)

    def _end(self, life: Life) -> None:
        self._live &= ~(1 << life.slot)
        del self._serials[life.slot]
        self._retired.append((self._generation, life.slot))
        if len(self._retired) > MAX_RETIRED_SLOTS:
            self._turn()

    # ---- the index

    def match(self, chain: Sequence[int]) -> Matches:
        """Who holds how much of a prompt. Costs O(log blocks) for each distinct depth."""
        young, old = self._young, self._old
        wanted = self._live
        if not chain or not wanted:
            return NO_MATCHES
        masks: list[int] = []
        blocks: list[int] = []
        high = len(chain)  # the depth is in [0, high]
        while high > 0 and wanted:
            low, found = 0, 0
            while low < high:
                middle = (low + high + 1) >> 1
                digest = chain[middle - 1]
                mask = (young.get(digest, 0) | old.get(digest, 0)) & wanted
                if mask:
                    low, found = middle, mask
                else:
                    high = middle - 1
            if not low:
                break
            masks.append(found)
            blocks.append(low)
            wanted &= ~found
            high = low - 1
        return Matches(masks, blocks) if masks else NO_MATCHES

    def record(self, chain: Sequence[int], slot: int) -> None:
        """A prompt was sent to a worker, which will hold it. Nothing for a slot that has been retired meanwhile."""
        bit = 1 << slot if slot >= 0 else 0
        live = self._live
        if not bit & live:
            return
        young, old = self._young, self._old
        low, high = 0, len(chain)  # what is in the young generation already needs no writing
        while low < high:
            middle = (low + high + 1) >> 1
            if young.get(chain[middle - 1], 0) & bit:
                low = middle
            else:
                high = middle - 1
        for i in range(low, len(chain)):
            digest = chain[i]
            young[digest] = young.get(digest, 0) | (old.get(digest, 0) & live) | bit
        if self._dying:
            self._free_some(64 + 2 * (len(chain) - low))
        if len(young) >= self._generation_blocks:
            self._turn()

    def apply(self, uid: str, epoch: str, digests: Sequence[int]) -> None:
        """What another replica has sent to a worker.

        Of an epoch that this replica has not seen, it is kept and does not count until this replica sees it; of a
        worker that it has not seen at all (it has just started), the newest epoch told of counts.
        """
        holder = self._holders.get(uid)
        if holder is None:
            holder = self._holders[uid] = Holder(self._begin(epoch), is_observed=False)
        life = holder.current
        if life.epoch != epoch:
            told = holder.told if holder.is_observed else life
            if told is None or told.epoch != epoch:
                if told is not None:
                    self._end(told)
                told = self._begin(epoch)
            if holder.is_observed:
                holder.told = told
            else:
                holder.current = told
            life = told
        self.record(digests, life.slot)

    def drop(self, uid: str, epoch: str, digests: Sequence[int]) -> None:
        """A worker has lost these blocks, as another replica has heard. Nothing for an unknown worker or epoch."""
        holder = self._holders.get(uid)
        if holder is None:
            return
        for life in (holder.current, holder.told):
            if life is not None and life.epoch == epoch:
                self.removed(life.slot, digests)

    def removed(self, slot: int, digests: Sequence[int]) -> None:
        """The engine has evicted these blocks."""
        keep = ~(1 << slot)
        for generation in (self._young, self._old):
            for digest in digests:
                mask = generation.get(digest, 0)
                if mask:
                    mask &= keep
                    if mask:
                        generation[digest] = mask
                    else:
                        del generation[digest]

    def reset(self) -> None:
        """Forget every prefix and every pin; workers keep their slots."""
        self._young, self._old = {}, {}
        self._pins, self._old_pins = {}, {}

    def _turn(self) -> None:
        """Begin a new generation, and free the slots whose last bits were in the one that is dropped."""
        self._dying = self._old
        self._old = self._young
        self._young = {}
        self._generation += 1
        while self._retired and self._retired[0][0] <= self._generation - 2:
            heapq.heappush(self._free, self._retired.pop(0)[1])

    def _free_some(self, entries: int) -> None:
        """A million entries at once would hold up every stream for 30 ms."""
        dying = self._dying
        for _ in range(min(entries, len(dying))):
            dying.popitem()

    # ---- sessions

    def pin(self, session: str, slot: int, now: float) -> None:
        """A session was placed; what follows of it goes to the same worker while that lives."""
        serial = self._serials.get(slot, 0)
        if not serial:
            return
        self._pins[xxh3_64_intdigest(session.encode())] = (slot, serial, now + self._session_seconds)
        if len(self._pins) >= MAX_SESSIONS:
            self._old_pins = self._pins
            self._pins = {}

    def pinned(self, session: str, now: float) -> int:
        """The slot that a session is pinned to; -1 if none, too old, or of a worker that is no longer what it was."""
        key = xxh3_64_intdigest(session.encode())
        pin = self._pins.get(key) or self._old_pins.get(key)
        if pin is None or now >= pin[2] or self._serials.get(pin[0], 0) != pin[1]:
            return -1
        return pin[0]
