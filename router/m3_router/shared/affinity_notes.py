"""What of this replica's dispatches the others are told: the records for a batch of notes, and what was told before.

Owns the memory of what was told, which is bounded. Pure: no Redis, no clock, no loop. On the way of every request, so
it is compiled (setup.py); the form of a record is `affinity_records`' concern.
"""

from m3_router.shared.affinity_records import RECORD_BLOCKS, Gone, Held, Record

Holder = tuple[str, str, str]  # pool, uid and epoch of a worker
Note = tuple[Holder, list[int], bool]  # digests, and whether it was sent them (else it has lost them)


class Told:
    """Which blocks the others know of, so that of a conversation's next turn only what is new is told.

    Forgets all when it holds `limit_blocks`, or `limit_seconds` after it began: then everything in use is told again,
    before others' indexes would have dropped it, and within what a new replica replays.
    """

    __slots__ = ("_began", "_blocks", "_count", "_limit_blocks", "_limit_seconds")

    def __init__(self, limit_blocks: int, limit_seconds: float) -> None:
        self._limit_blocks = limit_blocks
        self._limit_seconds = limit_seconds
        self._blocks: dict[Holder, set[int]] = {}
        self._count = 0
        self._began = 0.0

    def new(self, holder: Holder, chain: list[int], now: float) -> list[int]:
        """The end of the chain that was not told yet, and is from now on. `now`: monotonic seconds."""
        if self._count >= self._limit_blocks or now - self._began > self._limit_seconds:
            self.forget()
            self._began = now
        told = self._blocks.get(holder)
        if told is None:
            told = self._blocks[holder] = set()
        low, high = 0, len(chain)  # chain[:low] was told, chain[high:] was not: what is told is always a whole prefix
        if high and chain[high - 1] in told:  # as of most prompts that are sent again
            return []
        while low < high:
            middle = (low + high) >> 1
            if chain[middle] in told:
                low = middle + 1
            else:
                high = middle
        rest = chain[low:]
        told.update(rest)
        self._count += len(rest)
        return rest

    def gone(self, holder: Holder, digests: list[int]) -> None:
        """The others are told that it has lost these blocks; who sends them to it again says so."""
        told = self._blocks.get(holder)
        if told is not None:
            self._count -= len(told)
            told.difference_update(digests)
            self._count += len(told)

    def forget(self) -> None:
        """Let everything be told again."""
        self._blocks.clear()
        self._count = 0


def records_of(notes: list[Note], told: Told, now: float) -> list[Record]:
    """What the others are to be told, in the order of the notes. `now`: monotonic seconds."""
    records: list[Record] = []
    for holder, chain, is_held in notes:
        digests = chain
        if is_held:
            digests = told.new(holder, chain, now)
        else:
            told.gone(holder, chain)
        kind = Held if is_held else Gone
        pool, uid, epoch = holder
        starts = range(0, len(digests), RECORD_BLOCKS)
        records += [kind(pool, uid, epoch, digests[start : start + RECORD_BLOCKS]) for start in starts]
    return records
