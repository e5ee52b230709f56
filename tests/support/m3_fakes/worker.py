"""A worker without a checkpoint: the real engine, API and server on a port of its own, over a fake runner.

Its tokens are the 256 bytes, then an end of turn and the two thinking tags. It runs on a thread of the test's process.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from m3_fakes.runner import FakeRunner
from m3_worker.app import build_app
from m3_worker.chat.template import ChatTemplate
from m3_worker.config import WorkerSettings
from m3_worker.engine import Engine
from m3_worker.grammar import Grammars
from m3_worker.http_server import EmbeddedServer, listen
from m3_worker.model.generation_defaults import GenerationDefaults
from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.scheduler import Scheduler, SchedulerLimits
from m3_worker.serving import ServedModel, WorkerState
from m3_worker.simulate import load_simulated_model
from m3_worker.tokenizer import Tokenizer, byte_characters

PAGE_TOKENS = 4
CONTEXT_TOKENS = 256
MAX_BODY_BYTES = 65536
END_OF_TURN = 256
OPENING = 257
CLOSING = 258

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}:{{ message.content }}\n{% endfor %}assistant:"
    "{% if thinking_mode == 'enabled' %}<mm:think>{% elif thinking_mode == 'disabled' %}</mm:think>{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """One token a byte, `[e~[` (special) and the thinking tags (not special)."""
    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    added = [("[e~[", True), ("<mm:think>", False), ("</mm:think>", False)]
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in added])
    return Tokenizer(tokenizer)


@dataclass
class FakeWorker:
    """A running worker and what a test may pull at."""

    state: WorkerState
    model: ServedModel
    runner: FakeRunner
    port: int
    gates: list[threading.Semaphore] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def engine(self) -> Engine:
        return self.model.engine

    def hold_steps(self) -> threading.Semaphore:
        """From now on a step waits for this to be released."""
        gate = threading.Semaphore(0)
        self.gates.append(gate)
        self.runner.gate = gate
        return gate

    def reset(self) -> None:
        """Let go of what a test held, and forget its reply."""
        self.runner.gate, self.runner.reply, self.runner.before_step = None, [], None
        self.runner.reply_by_seed, self.runner.logprob_by_seed = {}, {}
        for gate in self.gates:
            gate.release(100_000)
        self.gates.clear()


StartWorker = Callable[..., AbstractContextManager[FakeWorker]]


def fake_model(
    *, max_concurrent: int = 8, max_waiting: int = 8, step_tokens: int = 32
) -> tuple[ServedModel, FakeRunner]:
    """A model named `fake` with a context of CONTEXT_TOKENS, and its runner."""
    runner = FakeRunner(PAGE_TOKENS)
    scheduler = Scheduler(SchedulerLimits(max_concurrent, step_tokens), Pages(256, PAGE_TOKENS))
    tokenizer = byte_tokenizer()
    model = ServedModel(
        name="fake",
        engine=Engine(scheduler, runner, max_waiting=max_waiting),
        tokenizer=tokenizer,
        grammars=Grammars(tokenizer, 259, {END_OF_TURN}),
        template=ChatTemplate(TEMPLATE),
        defaults=GenerationDefaults(temperature=0.0),
        vocab_size=259,
        max_context_tokens=CONTEXT_TOKENS,
        eos_token_ids=frozenset({END_OF_TURN}),
        created_seconds=1_790_000_000,
    )
    return model, runner


@contextmanager
def running_worker(
    *, is_loaded: bool = True, max_concurrent: int = 8, max_waiting: int = 8, port: int = 0
) -> Iterator[FakeWorker]:
    """Serve until the block is left. If it is not loaded yet, its health check says so. `port` 0: any free one."""
    model, runner = fake_model(max_concurrent=max_concurrent, max_waiting=max_waiting)
    state = WorkerState(MAX_BODY_BYTES, model if is_loaded else None)
    with serving(state, model.engine, port) as bound_port:
        worker = FakeWorker(state, model, runner, bound_port)
        try:
            yield worker
        finally:
            worker.reset()


@contextmanager
def running_simulation(settings: WorkerSettings) -> Iterator[tuple[ServedModel, str]]:
    """A worker as `m3-worker --simulate` serves it, until the block is left: gives its model and its address."""
    model = load_simulated_model(settings, lambda read_bytes, needed_bytes: None)
    with serving(WorkerState(settings.max_body_bytes, model), model.engine) as port:
        yield model, f"http://127.0.0.1:{port}"


@contextmanager
def serving(state: WorkerState, engine: Engine, port: int = 0) -> Iterator[int]:
    """The real server on a thread of its own, until the block is left: gives its port."""
    started: Future[tuple[asyncio.AbstractEventLoop, EmbeddedServer, int]] = Future()

    async def serve() -> None:
        listener = listen("127.0.0.1", port)
        loop = asyncio.get_running_loop()
        engine.start(loop)
        server = EmbeddedServer(build_app(state))
        started.set_result((loop, server, listener.getsockname()[1]))
        await server.serve([listener])
        engine.stop()
        engine.join()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="fake-worker")
    thread.start()
    loop, server, bound_port = started.result(10)
    try:
        yield bound_port
    finally:
        loop.call_soon_threadsafe(server.request_exit)
        thread.join(15)
