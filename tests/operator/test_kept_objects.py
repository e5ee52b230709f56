"""Objects that are kept as text are the same when they are read, and nobody's change of one reaches another."""

from m3_operator.kept_objects import KeptObjects

IDENTITY = ("Service", "ns", "m3")


def test_what_is_read_is_what_was_kept_and_a_change_of_it_is_not_kept() -> None:
    kept = KeptObjects()
    manifest = {"kind": "Service", "spec": {"ports": [{"port": 80, "name": "http"}], "empty": {}, "none": None}}
    kept[IDENTITY] = manifest
    first = dict(kept[IDENTITY])
    first["spec"]["ports"].append({"port": 81})
    assert kept[IDENTITY] == manifest
    assert (list(kept), len(kept), IDENTITY in kept) == ([IDENTITY], 1, True)
    del kept[IDENTITY]
    assert kept.get(IDENTITY) is None
