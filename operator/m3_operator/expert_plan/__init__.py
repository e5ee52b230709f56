"""Which expert is in which slot of which rank, and how that changes with the load.

At the start of a group: `packing.initial_plan`. While it serves: `loads.LoadAverage.after` each window, then
`balancing.judge`, which asks `moves.rebalance` for a next plan when the worst layer has been uneven for long enough.

Everything here is a value or a pure function, in plain Python: no clock, no I/O, the same answer for the same input.
"""
