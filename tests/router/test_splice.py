"""One member of a body set, every other byte as it was."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_router.bodies.splice import with_member
from m3_router.errors import Refusal


def raw_of(body: bytes, name: str) -> msgspec.Raw | None:
    return msgspec.json.decode(body, type=dict[str, msgspec.Raw]).get(name)


@pytest.mark.parametrize(
    ("body", "spliced"),
    [
        (b"{}", b'{"a":7}'),
        (b" { } ", b' {"a":7 } '),
        (b'{"b":1.50}', b'{"a":7,"b":1.50}'),
        (b'{"b":1.50,"a" : [1, 2] }', b'{"b":1.50,"a" : 7 }'),
        (b'{"b":{"a":1},"a":1}', b'{"b":{"a":1},"a":7}'),
        (b'{"b":"a","a":null}', b'{"b":"a","a":7}'),
        (b'{"a":1,"a":1}', b'{"a":1,"a":7}'),
        (b'{"\\"a":1,"a":1}', b'{"\\"a":1,"a":7}'),
    ],
)
def test_one_value_changes_and_no_other_byte(body: bytes, spliced: bytes) -> None:
    assert with_member(body, "a", b"7", raw_of(body, "a")) == spliced


def test_a_name_that_is_not_written_plainly_is_refused() -> None:
    body = b'{"\\u0061":1}'
    with pytest.raises(Refusal, match="a: write the name of this field plainly"):
        with_member(body, "a", b"7", raw_of(body, "a"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", '"a"']) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), JSON), JSON, st.sampled_from([None, 1]))
def test_the_object_means_the_same_but_for_the_member(fields: dict[str, object], value: object, indent: None) -> None:
    body = json.dumps(fields, ensure_ascii=False, indent=indent).encode()
    try:
        spliced = with_member(body, "a", json.dumps(value).encode(), raw_of(body, "a"))
    except Refusal:  # many inner objects may have the same member
        assert body.count(b'"a"') > 4
        return
    assert json.loads(spliced) == {**fields, "a": value}
