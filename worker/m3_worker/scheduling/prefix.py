"""The names of pages by content: a hash chain over a sequence's tokens, and the index from names to pages.

Owns what makes two pages equal, and nothing else: which page is whose is pages', when one is evicted as well.

    root     = sha256(page size, salt, adapter)
    name[i]  = sha256(name[i - 1] or root, token ids of page i, media that page i touches)

A name stands for everything that the page's keys and values depend on: all tokens up to the page's end, the content
behind media placeholders, the weights (adapter) and who may share it (salt: prompts of two tenants never meet, so that
none can learn by timing what the other asked). Only full pages have names.
"""

from array import array
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Protocol

_FORM = b"m3 page 1"
"""Part of every root: a change of what is hashed changes it."""


class Media(Protocol):
    """What a name depends on of an image or a video in the prompt."""

    @property
    def start(self) -> int:
        """Its first placeholder token."""

    @property
    def tokens(self) -> int:
        """Placeholder tokens."""

    @property
    def digest(self) -> bytes:
        """Hash of the content."""


def chain_root(page_tokens: int, salt: bytes, adapter: str) -> bytes:
    """Where the chain of all sequences with this salt and adapter begins; 32 bytes."""
    fields = (_FORM, page_tokens.to_bytes(8, "little"), salt, adapter.encode())
    return sha256(b"".join(len(field).to_bytes(8, "little") + field for field in fields)).digest()


class PageNames:
    """The names of one sequence's full pages, made as its tokens become known."""

    def __init__(self, page_tokens: int, salt: bytes, adapter: str, media: Sequence[Media]) -> None:
        """`media` in the order of the prompt, not overlapping."""
        self._page_tokens = page_tokens
        self._last = chain_root(page_tokens, salt, adapter)
        self._media = [item for item in media if item.tokens > 0]
        self._names: list[bytes] = []

    def of(self, token_ids: "array[int]", pages: int) -> list[bytes]:
        """Names of the first `pages` pages or more, which `token_ids` fills. Not to be written to."""
        for page in range(len(self._names), pages):
            start = page * self._page_tokens
            end = start + self._page_tokens
            name = sha256(self._last)
            name.update(token_ids[start:end].tobytes())
            for item in self._touched(start, end):
                name.update(item.start.to_bytes(8, "little") + item.tokens.to_bytes(8, "little") + item.digest)
            self._last = name.digest()
            self._names.append(self._last)
        return self._names

    def _touched(self, start: int, end: int) -> Iterator[Media]:
        while self._media and self._media[0].start + self._media[0].tokens <= start:
            del self._media[0]
        for item in self._media:
            if item.start >= end:
                return
            yield item


class PrefixIndex:
    """Which page of the device holds what: names to page ids and back, one to one."""

    def __init__(self) -> None:
        self._pages: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._pages)

    def page(self, name: bytes) -> int | None:
        """The page of that content, if there is one."""
        return self._pages.get(name)

    def name(self, page: int) -> bytes | None:
        """What the page holds, if others may come to share it."""
        return self._names.get(page)

    def add(self, name: bytes, page: int) -> bool:
        """Let others find the page. False, and nothing changed, if another of the same content is found already."""
        if name in self._pages:
            return False
        self._pages[name] = page
        self._names[page] = name
        return True

    def remove(self, page: int) -> bytes | None:
        """Forget what the page holds; returns its name, if it had one."""
        name = self._names.pop(page, None)
        if name is not None:
            del self._pages[name]
        return name

    def clear(self) -> None:
        """Forget everything."""
        self._pages.clear()
        self._names.clear()

    def check(self) -> None:
        """Raise RuntimeError unless names and pages are one to one."""
        if {page: name for name, page in self._pages.items()} != self._names:
            raise RuntimeError("the prefix index names pages that do not hold what it says")
