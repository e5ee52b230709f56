"""KV events in vLLM's form, over ZeroMQ: what can be known of a worker that names no requests.

Its hashes are over tokens, and nothing in them leads back to a prompt. Exact: that the cache was cleared
(AllBlocksCleared, or numbers that begin again, as with a new process). A bound: how many tokens the worker can hold at
all, as the number of blocks stored and not removed since it was known to be empty; whoever believes that more of a
prompt is cached there is wrong. After a gap in the numbers there is no bound until the cache is cleared again.

Three frames: topic, number (8 bytes, big endian), msgpack [seconds, [event, ...], ...]; an event is an array that
begins with its class, or a map with `type`. Source: vLLM's vllm/distributed/kv_events.py.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

HIGH_WATER_MESSAGES: Final = 16_384
_FIELDS: Final = {
    "BlockStored": ("block_hashes", "parent_block_hash", "token_ids", "block_size"),
    "BlockRemoved": ("block_hashes",),
    "AllBlocksCleared": (),
}


class HeldBound:
    """How much one worker can hold, from its messages. Pure."""

    def __init__(self, on_cleared: Callable[[], None]) -> None:
        """`on_cleared()` is called when the worker has lost all that it held."""
        self._on_cleared = on_cleared
        self._last: int | None = None  # number of the newest message
        self._blocks: int | None = None  # None: not known
        self._block_tokens = 0
        self.malformed = 0

    @property
    def max_tokens(self) -> int | None:
        """The most that it can hold; None if that is not known."""
        return None if self._blocks is None else self._blocks * self._block_tokens

    def take(self, frames: Sequence[bytes]) -> None:
        """The next message, of three frames. What is not of the form is counted, and ends what was known."""
        try:
            _, sequence, payload = frames
            number = int.from_bytes(sequence, "big")
            events = [_event(event) for event in msgspec.msgpack.decode(payload)[1]]
        except (ValueError, TypeError, LookupError, msgspec.MsgspecError):
            self.malformed += 1
            self._blocks = None
            return
        if number == 0 or (self._last is not None and number <= self._last):
            if self._last is not None:
                self._on_cleared()
            self._blocks = 0 if number == 0 else None
        elif self._last is None or number != self._last + 1:
            self._blocks = None
        self._last = number
        for kind, hashes, block_tokens in events:
            self._count(kind, hashes, block_tokens)

    def _count(self, kind: str, hashes: int, block_tokens: int) -> None:
        self._block_tokens = max(self._block_tokens, block_tokens)
        if kind == "AllBlocksCleared":
            self._blocks = 0
            self._on_cleared()
        elif self._blocks is not None:
            self._blocks = max(self._blocks + (hashes if kind == "BlockStored" else -hashes), 0)


class Subscriber:
    """The socket of one worker. `run` until it is cancelled; ZeroMQ connects again by itself."""

    def __init__(self, host: str, port: int, bound: HeldBound) -> None:
        self._endpoint = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        self._bound = bound

    async def run(self) -> None:
        """Take in what is published."""
        import zmq  # heavy, and only for who has such workers
        import zmq.asyncio

        context = zmq.asyncio.Context()
        socket = context.socket(zmq.SUB)
        try:
            socket.set_hwm(HIGH_WATER_MESSAGES)
            socket.setsockopt(zmq.IPV6, 1)
            socket.subscribe(b"")
            socket.connect(self._endpoint)
            while True:
                self._bound.take(await socket.recv_multipart())
        finally:
            socket.close(linger=0)
            context.term()


def _event(event: Any) -> tuple[str, int, int]:  # noqa: ANN401 - it is checked here
    """Class, number of hashes, tokens of a block (0 where it does not say). Raises TypeError or LookupError."""
    kind = event["type"] if isinstance(event, dict) else event[0]
    names = _FIELDS[kind]
    fields = event if isinstance(event, dict) else dict(zip(names, event[1:], strict=False))
    hashes = fields["block_hashes"] if "block_hashes" in names else []
    block_tokens = fields["block_size"] if "block_size" in names else 0
    if not isinstance(hashes, list) or not isinstance(block_tokens, int) or block_tokens < 0:
        raise TypeError(f"{kind} with fields of other types")
    return kind, len(hashes), block_tokens
