"""Whether what a router sent back is HTTP: whole responses, and at most one at the end that was cut off.

Read by h11, not by the router's own parser. Requests are fuzz, so how many answers are due is not known; each must be
well-formed, and whatever follows the last one must be nothing.
"""

from dataclasses import dataclass

import h11


@dataclass(frozen=True)
class Reading:
    """What was read: statuses of the responses, and what is wrong ("" if nothing is)."""

    statuses: tuple[int, ...]
    fault: str
    is_last_cut: bool = False


def read_answers(data: bytes) -> Reading:
    """Read everything that came on one connection, after which it was closed."""
    statuses: list[int] = []
    while data:
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**20)
        parser.send(h11.Request(method="GET", target="/", headers=[("host", "r")]))
        parser.send(h11.EndOfMessage())
        parser.receive_data(data)
        parser.receive_data(b"")
        try:
            while not isinstance(event := parser.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Response):
                    statuses.append(event.status_code)
                elif event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
                    return Reading(tuple(statuses), "", is_last_cut=True)
        except h11.RemoteProtocolError as error:
            # The end of the connection in the middle of a message is how a broken answer is told.
            if "peer closed connection" in str(error) or "ConnectionClosed" in str(error):
                return Reading(tuple(statuses), "", is_last_cut=True)
            return Reading(tuple(statuses), f"{error}: {data[:120]!r}")
        data = parser.trailing_data[0]
    return Reading(tuple(statuses), "")
