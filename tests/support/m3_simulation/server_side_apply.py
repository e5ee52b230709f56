"""Server-side apply for one manager, as far as the operator's writes can tell it from the real one.

Maps are merged field by field, lists are replaced as a whole, and a field that was applied before and is not any more
goes. Fields of others (defaults, what people added) stay.
"""

import json
from collections.abc import Mapping
from typing import Any


def copied(value: Any) -> Any:
    """A deep copy of JSON."""
    return json.loads(json.dumps(value))


def merged(live: Mapping[str, Any], before: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """`live` after `wanted` was applied by the manager that applied `before` the last time."""
    result = dict(live)
    for key, value in before.items():
        if key in wanted:
            continue
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            left = merged(result[key], value, {})
            if left:
                result[key] = left
                continue
        result.pop(key, None)
    for key, value in wanted.items():
        if isinstance(value, Mapping):
            old, mine = result.get(key), before.get(key)
            result[key] = merged(
                old if isinstance(old, Mapping) else {}, mine if isinstance(mine, Mapping) else {}, value
            )
        else:
            result[key] = value
    return result
