"""The full look at the cluster, page by page."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from m3_operator.observed import Key
from m3_operator.startup import look
from m3_operator.store import Store


def router(name: str, version: int = 1) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"kind": "M3Router", "metadata": metadata, "spec": {"deployments": []}}


class Pages:
    """An API server whose list comes in these pages; `between` happens before the last."""

    def __init__(self, *pages: Sequence[dict[str, Any]], between: Any = None) -> None:
        self._pages = pages
        self._between = between

    async def pages(self, kind: str, namespace: str | None, selector: str) -> AsyncIterator[Sequence[dict[str, Any]]]:
        for number, page in enumerate(self._pages, 1):
            if number == len(self._pages) and self._between is not None:
                self._between()
            yield page


async def test_what_is_listed_on_any_page_is_known_and_what_is_on_none_is_forgotten() -> None:
    store = Store()
    for name in ("a", "gone"):
        store.put("M3Router", router(name))
    concerned = await look(Pages([router("a")], [router("b")]), store, "M3Router", "ns")  # type: ignore[arg-type]
    assert {key.name for key in store.owners()} == {"a", "b"}
    assert {key for key in concerned if key.kind == "M3Router"} == {
        Key("M3Router", "ns", "b"),
        Key("M3Router", "ns", "gone"),
    }


async def test_what_came_while_the_pages_were_asked_for_stays() -> None:
    store = Store()
    pages = Pages([router("a")], [], between=lambda: store.put("M3Router", router("new")))
    await look(pages, store, "M3Router", "ns")  # type: ignore[arg-type]
    assert {key.name for key in store.owners()} == {"a", "new"}


async def test_a_list_that_says_what_is_known_concerns_nobody() -> None:
    store = Store()
    store.put("M3Router", router("a"))
    assert await look(Pages([router("a")]), store, "M3Router", "ns") == set()  # type: ignore[arg-type]
