"""Whose request it is, where a supervisor stands between: on a Unix socket, which nobody else can reach.

Owns the header in which the supervisor names its own peer. On any other socket the header means nothing.
"""

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

PEER_HEADER: Final = "x-m3-peer"
_NAME: Final = PEER_HEADER.encode()


def behind_supervisor(app: ASGIApp) -> ASGIApp:
    """The same application, to which the peer that the supervisor names is the client."""

    async def named(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            peer = next((value for name, value in scope["headers"] if name == _NAME), b"")
            scope = {**scope, "client": (peer.decode("latin-1"), 0)}
        await app(scope, receive, send)

    return named
