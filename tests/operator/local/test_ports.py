"""Ports that `m3 up` holds for its processes."""

import socket
import sys

import pytest

from m3_operator.local.ports import Ports, PortTakenError


def listen(port: int) -> socket.socket:
    """What a server does: SO_REUSEADDR, bind, listen."""
    server = socket.create_server(("127.0.0.1", port))
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return server


def test_free_ports_are_distinct_and_a_server_can_take_each_of_them() -> None:
    with Ports() as ports:
        chosen = ports.free(8)

        assert len(set(chosen)) == 8
        for port in chosen:
            listen(port).close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a bound port out of automatic choice")
def test_a_reserved_port_is_nobody_elses_automatic_choice_and_survives_its_servers_restart() -> None:
    with Ports() as ports:
        (port,) = ports.free(1)
        listen(port).close()
        others = [socket.create_server(("127.0.0.1", 0)) for _ in range(64)]

        assert port not in {other.getsockname()[1] for other in others}
        listen(port).close()
        for other in others:
            other.close()


def test_a_port_on_which_somebody_listens_is_taken_and_the_next_one_is_found() -> None:
    with listen(0) as other, Ports() as ports:
        taken = other.getsockname()[1]

        with pytest.raises(PortTakenError, match=f"port {taken} is taken by another process"):
            ports.exactly(taken)
        assert ports.next_after(taken - 1) > taken


def test_the_ports_are_free_again_at_the_end() -> None:
    with Ports() as ports:
        (port,) = ports.free(1)

    with socket.socket() as plain:  # without SO_REUSEADDR: refused while anybody holds it
        plain.bind(("127.0.0.1", port))
