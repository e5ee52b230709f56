"""Workers that speak the engine's HTTP and compute nothing, for tests of what stands in front of them."""

from m3_mock.engine import MockEngine, Received
from m3_mock.speaker import Speaker

__all__ = ["MockEngine", "Received", "Speaker"]
