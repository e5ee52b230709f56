"""From a snapshot to a decision, one module per kind. Pure: the same snapshot and time give the same decision."""
