"""Who may be put back from a worker into its lane, and whom to choose so that somebody more urgent fits.

Owns, for one service tier, the tickets that may yield: in flight, without first byte, put back less than
MAX_PREEMPTIONS times, and neither aged themselves nor let in because their lane had aged. Pure bookkeeping and one
choice; when to preempt, and for whom, is `lanes`'.
"""

from collections.abc import Sequence
from typing import Final

from m3_router.lanes.tickets import Ticket

MAX_PREEMPTIONS: Final = 2  # of one ticket


class Yielding:
    """The tickets of one service tier that may be put back, in the order of their admission."""

    __slots__ = ("ageing_seconds", "long", "tickets", "tokens")

    def __init__(self, ageing_seconds: float) -> None:
        self.ageing_seconds = ageing_seconds
        self.tickets: dict[Ticket, None] = {}
        # Over all of them, so that most of the time nobody has to be looked at.
        self.tokens = 0
        self.long = 0

    def add(self, ticket: Ticket) -> None:
        """A ticket was admitted; it is left out if it was put back too often."""
        if ticket.preemptions < MAX_PREEMPTIONS:
            self.tickets[ticket] = None
            self.tokens += ticket.tokens
            self.long += ticket.lane_index % 2

    def discard(self, ticket: Ticket) -> None:
        """A ticket has its first byte or has ended; no matter whether it could yield."""
        if ticket in self.tickets:
            del self.tickets[ticket]
            self.tokens -= ticket.tokens
            self.long -= ticket.lane_index % 2

    def forget_aged(self, now: float) -> None:
        """Drop those that have waited and run for so long that they are to stay where they are."""
        aged = [ticket for ticket in self.tickets if now - ticket.offered_at >= self.ageing_seconds]
        for ticket in aged:
            self.discard(ticket)

    def check(self) -> None:
        """Raise AssertionError if a count is wrong, or somebody is here who may not yield."""
        if self.tokens != sum(t.tokens for t in self.tickets) or self.long != sum(
            t.lane_index % 2 for t in self.tickets
        ):
            raise AssertionError(f"{self.tokens} tokens of {self.long} long tickets are not those of {self!r}")
        if any(t.state != "admitted" or t.has_first_byte or t.preemptions >= MAX_PREEMPTIONS for t in self.tickets):
            raise AssertionError(f"{self!r} holds one that may not yield")

    def __repr__(self) -> str:
        return f"<Yielding {list(self.tickets)}>"


def choose_victims(tiers: Sequence[Yielding], missing_tokens: int, missing_places: int, now: float) -> list[Ticket]:
    """Those to put back so that `missing_tokens`, and places for long prefills, become free; nobody if they can't.

    By tiers in the order given, the youngest first, for they lose the least. Then those that turned out to be needless
    are spared, the last chosen first. So without any one of them it would not be enough, and so none of them fits in
    what is left over when the one that they made room for has been let in.
    """
    victims: list[Ticket] = []
    if missing_tokens > sum([tier.tokens for tier in tiers]) or missing_places > sum([tier.long for tier in tiers]):
        return victims
    for tier in tiers:
        tier.forget_aged(now)
        for ticket in reversed(tier.tickets):
            if missing_tokens <= 0 and missing_places <= 0:
                break
            is_long = ticket.lane_index % 2
            if missing_tokens > 0 or is_long:
                victims.append(ticket)
                missing_tokens -= ticket.tokens
                missing_places -= is_long
    if missing_tokens > 0 or missing_places > 0:
        return []
    for ticket in list(reversed(victims)):
        is_long = ticket.lane_index % 2
        if missing_tokens + ticket.tokens <= 0 and missing_places + is_long <= 0:
            victims.remove(ticket)
            missing_tokens += ticket.tokens
            missing_places += is_long
    return victims
