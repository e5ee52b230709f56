"""A step on a GPU is queued without asking the device anything: what the host must know of it, it knows beforehand.

Shown without a GPU: the real model computes on fake CUDA tensors, which have shapes and types and no content, so that
whatever asks for content has none to be given. M3's own widths take no memory this way. Attention and the choice of
blocks are Triton's and take no fake tensors; their own tests show that they read nothing on the host.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from m3_kernels.gpu import attention, selection
from m3_kernels.layout import RaggedBatch
from m3_worker.config import TinySettings
from m3_worker.model.cache import PagedCache, StepTensors
from m3_worker.model.config import ModelConfig
from m3_worker.model.m3 import M3Model, ModelWeights
from m3_worker.tiny import config_json


class HostWaitError(AssertionError):
    """Something went from the device to the host, or the other way round."""


class NoTransfer(TorchDispatchMode):
    """Refuses what has tensors of the device on one side and of the host on the other."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs, outputs = (
            {one.device.type for one in tree_leaves(of) if isinstance(one, Tensor)} for of in (args, out)
        )
        if inputs and outputs and "cuda" in inputs | outputs and inputs != outputs:
            raise HostWaitError(f"{func} goes from {sorted(inputs)} to {sorted(outputs)}")
        return out


def _devices(tree: object) -> set[str]:
    return {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def attend(q: Tensor, *_: object) -> Tensor:
        return torch.empty_like(q)

    def choose(index_q: Tensor, index_k: Tensor, batch: RaggedBatch, k: int) -> Tensor:
        return torch.empty(index_q.shape[1], len(index_q), k, dtype=torch.int32, device=index_q.device)

    monkeypatch.setattr(attention, "sparse_attention", attend)
    monkeypatch.setattr(attention, "dense_attention", attend)
    monkeypatch.setattr(selection, "choose_blocks", choose)
    with FakeTensorMode():
        yield


def step_of(chunks: Sequence[tuple[int, int]]) -> StepTensors:
    """New tokens and context of each sequence."""
    tokens = sum(new for new, _ in chunks)

    def numbers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int64, device="cuda")

    return StepTensors(
        token_ids=numbers(tokens),
        positions=numbers(tokens),
        query_starts=[sum(new for new, _ in chunks[:end]) for end in range(len(chunks) + 1)],
        context_lengths=[context for _, context in chunks],
        page_table=numbers(len(chunks), -(-max(context for _, context in chunks) // 128)),
        slot_mapping=numbers(tokens),
        logit_rows=numbers(len(chunks)),
    )


def config_of_released_widths() -> ModelConfig:
    """M3 as it was released, but for its number of layers: two of either kind."""
    shape = TinySettings(
        directory=Path("unused"),
        layers=4,
        dense_layers=2,
        hidden=6144,
        heads=64,
        kv_heads=4,
        head_dim=128,
        index_dim=128,
        experts=128,
        experts_per_token=4,
        intermediate=3072,
        block=128,
        topk=16,
        context=2**20,
        vision=False,
    )
    return ModelConfig.from_json(config_json(shape))


DECODING = [(1, 300), (1, 70_000), (1, 1)]
MIXED = [(1, 300), (512, 5000), (100, 100)]


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize(
    ("chunks", "cache_dtype"),
    [(DECODING, torch.bfloat16), (MIXED, torch.float8_e4m3fn)],
    ids=["decoding", "with prompts, cache in FP8"],
)
def test_a_step_of_a_model_in_bfloat16_is_queued_without_a_wait(
    chunks: Sequence[tuple[int, int]], cache_dtype: torch.dtype
) -> None:
    config = config_of_released_widths()
    model = M3Model(config, ModelWeights.allocate(config, torch.bfloat16, "cuda"))
    cache = PagedCache.allocate(config, 1000, cache_dtype, "cuda")
    step = step_of(chunks)
    with NoTransfer():
        likeliest = model.forward(step, cache).argmax(-1)
    assert (likeliest.shape, likeliest.device.type) == ((len(chunks),), "cuda")


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda x: x.tolist(), DataDependentOutputException),
        (lambda x: bool(x[0] > 0), DataDependentOutputException),
        (lambda x: torch.bincount(x, minlength=4), DynamicOutputShapeException),
        (lambda x: x[x > 0], DynamicOutputShapeException),
        (lambda x: x.cpu(), HostWaitError),
        (lambda x: x.to("cpu", non_blocking=True), HostWaitError),
    ],
    ids=["tolist", "bool", "bincount", "mask", "cpu", "to"],
)
def test_a_wait_would_be_noticed(ask: Callable[[Tensor], object], error: type[Exception]) -> None:
    numbers = torch.empty(4, dtype=torch.int64, device="cuda")
    with NoTransfer(), pytest.raises(error):
        ask(numbers)


@pytest.mark.usefixtures("fake_cuda")
def test_a_copy_from_the_host_in_mid_step_would_be_noticed() -> None:
    with NoTransfer(), pytest.raises(HostWaitError):
        torch.zeros(4).to("cuda")
