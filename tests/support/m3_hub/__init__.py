"""A hub on loopback: the two routes of a Hugging Face hub that a download needs, and its ways to fail."""

from m3_hub.hub import FakeHub, Fault, running_hub

__all__ = ["FakeHub", "Fault", "running_hub"]
