"""Workers as clients of a cluster see them: two of a kind behind one router, at one URL."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from m3_fakes.worker import CONTEXT_TOKENS, MAX_BODY_BYTES, FakeWorker, running_worker
from m3_mock.running import config_for
from m3_mock.threaded import router_on_thread


class _All:
    """Several things as one: what is set is set on all of them, what is read is the first one's."""

    def __init__(self, *things: Any) -> None:
        self.__dict__["_things"] = things

    def __getattr__(self, name: str) -> Any:
        return getattr(self._things[0], name)

    def __setattr__(self, name: str, value: Any) -> None:
        for thing in self._things:
            setattr(thing, name, value)


@contextmanager
def routed(urls: list[str], model: str, *, context_tokens: int, **settings: Any) -> Iterator[str]:
    """A router in front of these workers of one model, until the block is left: gives its URL."""
    pool = {"models": [model], "maxContextTokens": context_tokens}
    with router_on_thread(config_for(urls, pool=pool, **settings), ready=len(urls)) as url:
        yield url


@contextmanager
def reached(
    way: str, start: Callable[[], AbstractContextManager[str]], model: str, *, context_tokens: int, **settings: Any
) -> Iterator[str]:
    """The URL of a worker (`way` is `direct`), or of a router before two of a kind. `start` gives a worker's own."""
    with ExitStack() as stack:
        if way == "direct":
            yield stack.enter_context(start())
            return
        urls = [stack.enter_context(start()) for _ in range(2)]
        yield stack.enter_context(routed(urls, model, context_tokens=context_tokens, **settings))


@contextmanager
def routed_workers(*, router: dict[str, Any] | None = None, **settings: Any) -> Iterator[FakeWorker]:
    """Two fake workers behind a router, to be used as if they were one. `settings`: those of `running_worker`.

    Its engine is the first worker's, which does not see all that is sent.
    """
    with ExitStack() as stack:
        workers = [stack.enter_context(running_worker(**settings)) for _ in range(2)]
        url = stack.enter_context(
            routed(
                [worker.url for worker in workers],
                "fake",
                context_tokens=CONTEXT_TOKENS,
                **(router or {"limits": {"bodyBytes": MAX_BODY_BYTES}}),
            )
        )
        first = workers[0]
        one = FakeWorker(
            first.state, first.model, _All(*(each.runner for each in workers)), int(url.rpartition(":")[2])
        )
        yield one
        one.reset()
