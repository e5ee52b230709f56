"""What a router does when clients leave, and when workers die, stall or talk nonsense: probes, each with a grade.

    engine.py    the worker of a probe, with every fault that it can have
    client.py    one request over a socket of its own, and how its answer ended
    probes.py    the questions; each returns a `Finding` with a grade from 0 (bad) to 3 (as good as it can be)

Tests ask them of our router, and the benchmark of its peers: a probe needs no more than a `Door`.
"""

from m3_behaviour.client import Answer, Door, ask, chat_body
from m3_behaviour.engine import Engine, Script
from m3_behaviour.probes import BEST, PROBES, Finding, Launch, Probe

__all__ = [
    "BEST",
    "PROBES",
    "Answer",
    "Door",
    "Engine",
    "Finding",
    "Launch",
    "Probe",
    "Script",
    "ask",
    "chat_body",
]
