"""Synthetic loads of a layer's experts, for tests and benchmarks of where experts go: seeded, in tokens.

zipf S           expert of popularity k gets k**-S; which expert that is differs by layer
lognormal 0.7    independent
drifting         lognormal 0.7 whose logarithm follows an AR(1) process, as workloads change over hours
"""

import math
from collections.abc import Iterator
from random import Random

EXPERTS = 128
TOKENS = 1_000_000.0
"""Of a layer."""
KINDS = ("zipf 0.6", "zipf 1.0", "lognormal 0.7")
SIGMA = 0.7
PERSISTENCE = 0.95


def layer_loads(kind: str, random: Random, experts: int = EXPERTS) -> list[float]:
    """[experts]: one layer's load."""
    family, parameter = kind.split()
    if family == "zipf":
        weights = [(k + 1) ** -float(parameter) for k in range(experts)]
        random.shuffle(weights)
    else:
        weights = [math.exp(float(parameter) * random.gauss(0, 1)) for _ in range(experts)]
    return _scaled(weights)


def drifting_loads(layers: int, random: Random, experts: int = EXPERTS) -> Iterator[list[list[float]]]:
    """[layers][experts], again and again, each a step further."""
    states = [[random.gauss(0, 1) for _ in range(experts)] for _ in range(layers)]
    while True:
        yield [_scaled([math.exp(SIGMA * state) for state in of_layer]) for of_layer in states]
        fresh = math.sqrt(1 - PERSISTENCE**2)
        states = [[PERSISTENCE * state + fresh * random.gauss(0, 1) for state in of_layer] for of_layer in states]


def _scaled(weights: list[float]) -> list[float]:
    total = sum(weights)
    return [TOKENS * weight / total for weight in weights]
