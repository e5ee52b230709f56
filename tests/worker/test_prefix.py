"""Names of pages: equal exactly where everything that keys and values depend on is equal."""

from array import array
from dataclasses import dataclass
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_worker.scheduling.prefix import PageNames, PrefixIndex, chain_root


@dataclass(frozen=True)
class Image:
    start: int
    tokens: int
    digest: bytes


def names(
    tokens: list[int], salt: bytes = b"", adapter: str = "", media: tuple[Image, ...] = (), page_tokens: int = 4
) -> list[bytes]:
    full = len(tokens) // page_tokens
    return PageNames(page_tokens, salt, adapter, media).of(array("q", tokens), full)


def common(one: list[bytes], other: list[bytes]) -> int:
    """Equal names from the start; after the first difference there must be none."""
    equal = [left == right for left, right in zip(one, other, strict=False)]
    count = equal.index(False) if False in equal else len(equal)
    assert not any(equal[count:])
    return count


def test_a_name_is_the_hash_of_the_one_before_and_the_tokens() -> None:
    first = sha256(chain_root(2, b"", "") + array("q", [7, 8]).tobytes()).digest()
    assert names([7, 8, 9, 10], page_tokens=2) == [first, sha256(first + array("q", [9, 10]).tobytes()).digest()]


@given(st.lists(st.integers(0, 3), max_size=24), st.lists(st.integers(0, 3), max_size=24))
def test_names_agree_as_far_as_whole_pages_of_tokens_do(one: list[int], other: list[int]) -> None:
    same = next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    assert common(names(one), names(other)) == same // 4


def test_salt_adapter_and_page_size_change_every_name() -> None:
    tokens = list(range(12))
    plain = names(tokens)
    for other in (names(tokens, salt=b"acme"), names(tokens, adapter="a"), names(tokens, salt=b"a", adapter="")):
        assert common(plain, other) == 0
    assert names(tokens, salt=b"a") != names(tokens, adapter="a")
    assert chain_root(4, b"", "") != chain_root(8, b"", "")


@pytest.mark.parametrize(
    ("start", "tokens", "pages_before"), [(0, 2, 0), (3, 2, 0), (4, 4, 1), (7, 1, 1), (8, 1, 2), (2, 9, 0)]
)
def test_an_image_changes_the_names_from_the_first_page_it_touches(start: int, tokens: int, pages_before: int) -> None:
    prompt = [9] * 16
    cat, dog = Image(start, tokens, b"cat"), Image(start, tokens, b"dog")
    assert common(names(prompt, media=(cat,)), names(prompt, media=(dog,))) == pages_before
    assert common(names(prompt, media=(cat,)), names(prompt)) == pages_before
    assert names(prompt, media=(cat,)) == names(prompt, media=(Image(start, tokens, b"cat"),))


def test_an_image_that_spans_pages_is_part_of_each() -> None:
    prompt = [9] * 12
    two = (Image(1, 2, b"a"), Image(3, 6, b"b"))
    assert common(names(prompt, media=two), names(prompt, media=(two[0], Image(3, 6, b"c")))) == 0
    later = (Image(1, 2, b"a"), Image(4, 6, b"b"))
    assert common(names(prompt, media=later), names(prompt, media=(later[0], Image(4, 6, b"c")))) == 1


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.lists(st.integers(0, 10), max_size=8))
def test_names_made_bit_by_bit_are_those_made_at_once(tokens: list[int], steps: list[int]) -> None:
    media = (Image(2, 5, b"x"), Image(9, 3, b"y"))
    growing = PageNames(4, b"s", "", media)
    for step in sorted(steps):
        pages = min(step, len(tokens) // 4)
        growing.of(array("q", tokens), pages)
    assert growing.of(array("q", tokens), len(tokens) // 4) == names(tokens, b"s", media=media)


def test_the_index_keeps_the_first_page_of_a_name() -> None:
    index = PrefixIndex()
    assert index.add(b"n", 3)
    assert not index.add(b"n", 4)
    assert (index.page(b"n"), index.name(3), index.name(4)) == (3, b"n", None)
    assert index.remove(4) is None
    assert index.remove(3) == b"n"
    assert (index.page(b"n"), len(index)) == (None, 0)
