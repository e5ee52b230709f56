"""Which evicted pages lie in host memory, and where: names to slots, the least recently used replaced first.

Decides and copies nothing: it gives out `CopyOut` and `CopyIn`, which `host_tier` carries out in their order before the
step that they were decided for. In that order each copy finds what it needs, as if done when it was decided.
A page that is copied back keeps its slot, so that evicting it again costs no copy.
"""

from collections import OrderedDict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class CopyOut:
    """Copy a page of the device into a slot of the host's pool."""

    page: int
    slot: int


@dataclass(frozen=True, slots=True)
class CopyIn:
    """Copy a slot of the host's pool into a page of the device."""

    slot: int
    page: int


Copy = CopyOut | CopyIn


class PageMover(Protocol):
    """What copies pages between the device and the host: `host_tier.HostTier`, or a fake of it."""

    def copy(self, copies: Sequence[Copy]) -> None:
        """Do the copies in their order; what is computed afterwards sees them done."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A slot was found for a page."""

    slot: int
    replaced: bytes | None
    """The name that had to go for it."""


class HostPages:
    """The slots of one pool. Slots are 0 .. slots - 1; there may be none at all."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._unused = list(range(slots - 1, -1, -1))
        self._slots: OrderedDict[bytes, int] = OrderedDict()  # the least recently used first

    def __len__(self) -> int:
        return len(self._slots)

    def slot(self, name: bytes) -> int | None:
        """Where the page of that name lies, if it does."""
        return self._slots.get(name)

    def touch(self, name: bytes) -> None:
        """Note that a page that is here was used."""
        self._slots.move_to_end(name)

    def keep(self, name: bytes, pinned: Container[bytes]) -> Kept | None:
        """Find a slot for a page that is not here. None if all slots hold `pinned` ones, which were touched last."""
        replaced = None
        if self._unused:
            slot = self._unused.pop()
        elif self._slots and next(iter(self._slots)) not in pinned:
            replaced, slot = self._slots.popitem(last=False)
        else:
            return None
        self._slots[name] = slot
        return Kept(slot, replaced)

    def clear(self) -> None:
        """Forget every page."""
        self._unused.extend(self._slots.values())
        self._slots.clear()

    def check(self) -> None:
        """Raise RuntimeError unless every slot is unused or holds one page."""
        if sorted([*self._unused, *self._slots.values()]) != list(range(self.slots)):
            raise RuntimeError(f"{len(self._unused)} unused and {len(self._slots)} used slots are not the {self.slots}")
