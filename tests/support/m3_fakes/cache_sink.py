"""Who is told what a worker has cached, in place of an affinity index."""


class HeldBlocks:
    """What was said, as a set."""

    def __init__(self) -> None:
        self.epochs: list[str] = []
        self.held: set[int] = set()

    def began(self, epoch: str) -> None:
        self.epochs.append(epoch)
        self.held.clear()

    def stored(self, digests: list[int]) -> None:
        self.held.update(digests)

    def removed(self, digests: list[int]) -> None:
        self.held.difference_update(digests)
