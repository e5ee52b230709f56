"""docs/recovery.md lists every reason that a condition can have, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import m3_operator
from m3_operator.decide.weights import FAILURES
from m3_operator.plan import faults
from m3_operator.signals.xid import FATAL_XIDS

PACKAGE = Path(m3_operator.__file__).parent
TABLE = Path(__file__).parents[2] / "docs" / "recovery.md"


def reasons_of(path: Path) -> Iterator[str]:
    """What Problem(reason, ...), Told(holds, reason, ...) and Verdict(type, holds, reason, ...) in one file give."""
    places = {"Problem": 0, "Told": 1, "Verdict": 2}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in places:
            given = node.args[places[node.func.id]]
            for choice in (given.body, given.orelse) if isinstance(given, ast.IfExp) else (given,):
                if isinstance(choice, ast.Constant):
                    yield str(choice.value)


def test_the_table_lists_every_reason_and_no_other() -> None:
    found = {reason for path in PACKAGE.rglob("*.py") for reason in reasons_of(path)} | set(FAILURES)
    assert found, "no call was understood"
    found |= {faults.NODE_LOST, faults.GPU_FAILED, faults.HANG_DETECTED}
    listed = re.findall(r"^\| `([A-Za-z]+)` \|", TABLE.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(found)


def test_the_guide_names_every_xid_for_which_a_node_is_avoided() -> None:
    (told,) = re.findall(r"reset or repair \(([0-9, ]+)\)", TABLE.read_text())
    assert [int(number) for number in told.split(", ")] == sorted(FATAL_XIDS)
