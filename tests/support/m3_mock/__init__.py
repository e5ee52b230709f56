"""A worker that speaks the engine's HTTP and computes nothing, for tests of what stands in front of it."""

from m3_mock.engine import MockEngine, Received

__all__ = ["MockEngine", "Received"]
