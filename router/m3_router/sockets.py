"""Listening sockets: TCP addresses of the configuration, which several processes may share, and Unix sockets."""

import socket
from pathlib import Path

from m3_router.config import split_address

BACKLOG = 1024  # connections that may wait to be accepted: a burst must not be refused


def listen(address: str, *, is_shared: bool = False) -> socket.socket:
    """A bound socket, not listening yet. is_shared: other processes bind the same address (SO_REUSEPORT), and the
    kernel divides connections between them. Raises OSError that names the address.
    """
    host, port = split_address(address)
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(target)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from error
    return listener


def listen_at_path(path: Path) -> socket.socket:
    """A bound Unix socket, in place of one that an earlier process has left. Raises OSError that names the path."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {path}: {error.strerror or error}") from error
    return listener


def name_of(listener: socket.socket) -> str:
    """`HOST:PORT` that a bound socket has, or the path of a Unix socket."""
    if listener.family == socket.AF_UNIX:
        return str(listener.getsockname())
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
