"""What runs in a pool: the tokens it holds, the long prefills among it, and who of it may still be put back.

Owns the bounds of a pool and the counts that are held against them; `start` does not ask whether there is room. Who
gets the room is `lanes`'.

    0            standard share                tokens in flight
    |----- standard, batch, priority -----|---- priority alone ----|
"""

from m3_router.lanes.lane import BATCH, STANDARD, LaneBounds
from m3_router.lanes.preemption import Yielding, choose_victims
from m3_router.lanes.tickets import Ticket


class InFlight:
    """The admitted tickets of one pool, as counts."""

    __slots__ = (
        "_batch",
        "_limit_tokens",
        "_long_prefills",
        "_low_tokens",
        "_priority_tokens",
        "_share_tokens",
        "_standard",
        "long_prefill_limit",
    )

    def __init__(self, bounds: LaneBounds) -> None:
        self._limit_tokens = bounds.tokens_in_flight
        self._share_tokens = bounds.standard_share_tokens
        self._priority_tokens = 0
        self._low_tokens = 0  # of standard and batch
        self._long_prefills = 0  # long tickets without first byte
        self.long_prefill_limit = 0  # until workers are ready
        self._standard = Yielding(bounds.max_wait_seconds / 2)
        self._batch = Yielding(bounds.batch_max_wait_seconds / 2)

    @property
    def room(self) -> int:
        """Tokens that are free, for priority."""
        return self._limit_tokens - self._priority_tokens - self._low_tokens

    @property
    def low_room(self) -> int:
        """Tokens that are free, for standard and batch."""
        return min(self.room, self._share_tokens - self._low_tokens)

    @property
    def reserved_room(self) -> int:
        """What priority has left of the reserved part; below 0 where it has borrowed."""
        return self._limit_tokens - self._share_tokens - self._priority_tokens

    @property
    def places(self) -> int:
        """Long prefills that may begin; below 0 where workers have gone."""
        return self.long_prefill_limit - self._long_prefills

    def start(self, ticket: Ticket, may_yield: bool) -> None:
        """A ticket is admitted. may_yield: whether it may be put back as long as it has no first byte."""
        tokens = ticket.tokens
        index = ticket.lane_index
        if index % 2:
            self._long_prefills += 1
        if index < STANDARD:
            self._priority_tokens += tokens
        else:
            self._low_tokens += tokens
            if may_yield:
                (self._standard if index < BATCH else self._batch).add(ticket)

    def end_prefill(self, ticket: Ticket) -> None:
        """A ticket has its first byte."""
        index = ticket.lane_index
        if index % 2:
            self._long_prefills -= 1
        if index >= STANDARD:
            (self._standard if index < BATCH else self._batch).discard(ticket)

    def stop(self, ticket: Ticket) -> None:
        """A ticket gives back what it holds."""
        if not ticket.has_first_byte:
            self.end_prefill(ticket)
        if ticket.lane_index < STANDARD:
            self._priority_tokens -= ticket.tokens
        else:
            self._low_tokens -= ticket.tokens

    def victims(self, tier: int, missing_tokens: int, missing_places: int, now: float) -> list[Ticket]:
        """Those of lower tiers to put back so that so much becomes free; nobody if that is not enough."""
        below = [self._batch, self._standard] if tier < STANDARD else [self._batch]
        return choose_victims(below, missing_tokens, missing_places, now)

    def check(self) -> None:
        """Raise AssertionError if a bound of tokens is broken, or a count is wrong."""
        low, priority = self._low_tokens, self._priority_tokens
        if not (0 <= low <= self._share_tokens and priority >= 0 and low + priority <= self._limit_tokens):
            raise AssertionError(f"the bounds of {self!r} are broken")
        self._standard.check()
        self._batch.check()

    def __repr__(self) -> str:
        return (
            f"<InFlight {self._priority_tokens} + {self._low_tokens} tokens of {self._limit_tokens}, share "
            f"{self._share_tokens}; {self._long_prefills} long prefills of {self.long_prefill_limit}>"
        )
