"""Ranks other than 0: each does what rank 0 says, until it says that this is the end.

Owns that loop. A follower keeps no request and no page table, samples nothing and speaks no HTTP.
"""

from m3_worker.model.cache import PagedCache
from m3_worker.model.m3 import M3Model
from m3_worker.ranks.expert_exchange import GroupRanks
from m3_worker.ranks.expert_swap import ExpertSwap
from m3_worker.ranks.words import Kind, Voice, Word, unpack_copies, unpack_step
from m3_worker.scheduling.host_pages import PageMover


class Follower:
    """One rank that follows."""

    def __init__(
        self, model: M3Model, cache: PagedCache, mover: PageMover | None, ranks: GroupRanks, swap: ExpertSwap
    ) -> None:
        """`model` computes with `ranks`; `mover` copies pages of `cache`, if pages are kept in host memory."""
        self._model = model
        self._cache = cache
        self._mover = mover
        self._ranks = ranks
        self._swap = swap

    def follow(self, voice: Voice) -> None:
        """Do what is said until the end. Raises GroupError if an exchange fails."""
        while (word := voice.hear()).kind is not Kind.END:
            self._do(word)

    def _do(self, word: Word) -> None:
        if word.kind is Kind.STEP:
            self._model.states(unpack_step(word, self._cache.k.device), self._cache)
        elif word.kind is Kind.COPIES and self._mover is not None:
            self._mover.copy(unpack_copies(word))
        elif word.kind is Kind.LAYER:
            layer, *slots = word.numbers.tolist()
            self._swap.take(layer, tuple(slots))
        elif word.kind is Kind.LOAD:
            self._ranks.total_load()
