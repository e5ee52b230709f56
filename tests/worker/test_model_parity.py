"""The model gives what two independent implementations give on the same checkpoint directory.

Both oracles read the official names and config by themselves. Every configuration runs far beyond block x top-k tokens,
where attention is really sparse; each way of getting an answer wrong that we know of is shown to break the parity.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from m3_kernels import ops, reference
from m3_kernels.layout import RotaryAngles
from m3_oracles import hf, mlx, native
from m3_worker.config import TinySettings
from m3_worker.model.config import ModelConfig
from m3_worker.model.m3 import M3Model
from m3_worker.tiny import write_checkpoint
from m3_worker.tiny_weights import write_weights

pytestmark = pytest.mark.xdist_group("oracles")  # importing the oracles takes seconds: once is enough

TOLERANCE = 1e-4
GREEDY_TOKENS = 64

# name: (settings of the tiny checkpoint, changes to its text_config)
CONFIGURATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "two_groups": ({"seed": 1}, {}),
    "a_group_per_head": (
        {"seed": 2, "hidden": 32, "heads": 4, "kv_heads": 4, "head_dim": 8, "index_dim": 8, "block": 4, "topk": 2},
        {"partial_rotary_factor": 1.0, "rotary_dim": 8},
    ),
    "one_group_wide_heads": (
        {"seed": 3, "hidden": 48, "heads": 6, "kv_heads": 1, "head_dim": 32, "index_dim": 16, "block": 8, "topk": 3},
        {"partial_rotary_factor": 0.25, "rotary_dim": 8, "rope_theta": 10_000},
    ),
    "odd_block_and_wide_index": (
        {"seed": 4, "heads": 12, "kv_heads": 3, "head_dim": 20, "index_dim": 28, "block": 7, "topk": 5, "layers": 3},
        {"rope_theta": 1_000, "rms_norm_eps": 1e-5},
    ),
    "no_dense_layer": (
        {"seed": 5, "dense_layers": 0, "layers": 2, "experts": 5, "experts_per_token": 3, "intermediate": 36},
        {"routed_scaling_factor": 1.3},
    ),
    "own_block_only": (
        {"seed": 6, "heads": 16, "kv_heads": 4, "head_dim": 8, "index_dim": 4, "block": 32, "topk": 1, "layers": 3},
        {},
    ),
    "real_blocks": (
        {"seed": 7, "layers": 3, "dense_layers": 2, "experts": 16, "experts_per_token": 4, "block": 128, "topk": 2},
        {},
    ),
    "clamps_at_work": (
        {"seed": 8, "hidden": 40, "block": 8, "topk": 3},
        {"swiglu_limit": 0.4, "swiglu_alpha": 2.5, "intermediate_size": 24, "dense_intermediate_size": 56},
    ),
}


def write(directory: Path, name: str) -> Path:
    """The checkpoint of a configuration, whose changes go into config.json before weights are drawn for it."""
    settings, changes = CONFIGURATIONS[name]
    write_checkpoint(TinySettings(directory=directory, **settings))
    config = json.loads((directory / "config.json").read_bytes())
    config["text_config"] |= changes
    (directory / "config.json").write_text(json.dumps(config))
    write_weights(directory, ModelConfig.load(directory), settings["seed"])
    return directory


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, which wait for each other actively where tests run in parallel."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("checkpoint"), request.param)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> M3Model:
    return native.load(checkpoint)


@pytest.fixture(scope="module")
def sequences(model: M3Model) -> dict[str, list[int]]:
    """Lengths around block x top-k, at block boundaries, of one token, and far beyond: all of them together."""
    edge, block = sparse_from_token(model), model.config.page_tokens
    return random_sequences(model, [edge - 1, edge, edge + 1, 1, block, 2 * edge + block // 2, 3 * edge + 5])


@pytest.fixture(scope="module")
def expected(checkpoint: Path, sequences: dict[str, list[int]]) -> dict[str, dict[str, Tensor]]:
    """What each oracle says of each sequence."""
    return {
        oracle.__name__: {name: oracle.logits(checkpoint, ids) for name, ids in sequences.items()}
        for oracle in (hf, mlx)
    }


def sparse_from_token(model: M3Model) -> int:
    """The first position whose query cannot see everything: block x top-k."""
    return model.config.page_tokens * model.config.topk_blocks


def random_sequences(model: M3Model, lengths: list[int], seed: int = 0) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{number}: {length} tokens": torch.randint(0, model.config.vocab_size, (length,), generator=generator).tolist()
        for number, length in enumerate(lengths)
    }


def worst_difference(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert actual.keys() == expected.keys()
    return max(float((actual[name] - expected[name]).abs().max()) for name in expected)


def assert_parity(actual: dict[str, Tensor], expected: dict[str, dict[str, Tensor]]) -> None:
    differences = {oracle: worst_difference(actual, logits) for oracle, logits in expected.items()}
    print("worst difference of logits:", differences)
    assert max(differences.values()) < TOLERANCE, differences  # NaN is not smaller either


def test_the_oracles_agree_with_each_other(expected: dict[str, dict[str, Tensor]]) -> None:
    first, second = expected.values()
    assert worst_difference(first, second) < TOLERANCE


def test_whole_prompts_of_different_lengths_in_one_step(
    model: M3Model, sequences: dict[str, list[int]], expected: dict[str, dict[str, Tensor]]
) -> None:
    assert_parity(native.Native(model).step(sequences), expected)


@pytest.mark.parametrize("sizes", [(13, 7, 0, 29), (1, 64, 5)], ids=str)
def test_prompts_fed_in_odd_chunks_beside_each_other(
    model: M3Model, sequences: dict[str, list[int]], expected: dict[str, dict[str, Tensor]], sizes: tuple[int, ...]
) -> None:
    assert_parity(native.Native(model).chunked(sequences, sizes), expected)


def test_greedy_decoding_of_a_ragged_batch(checkpoint: Path, model: M3Model) -> None:
    """64 tokens cross block boundaries, and for the first prompt the border between dense and sparse."""
    sparse_from = sparse_from_token(model)
    prompts = random_sequences(model, [max(1, sparse_from - 20), 2 * sparse_from + 3, 3], seed=1)
    decoded = native.Native(model).greedy(prompts, GREEDY_TOKENS)
    first = next(iter(prompts))
    for oracle in (hf, mlx):
        assert oracle.greedy(checkpoint, prompts[first], GREEDY_TOKENS) == decoded[first]
        for name, prompt in prompts.items():
            # An oracle that, shown our tokens, would have chosen each of them decodes the same.
            chosen = oracle.logits(checkpoint, prompt + decoded[name])[len(prompt) - 1 : -1].argmax(-1)
            assert chosen.tolist() == decoded[name]


def test_a_huge_top_k_changes_the_logits_from_block_times_top_k_on_and_not_before(model: M3Model) -> None:
    sparse_from = sparse_from_token(model)
    prompt = random_sequences(model, [3 * sparse_from + 5])
    (sparse,) = native.Native(model).step(prompt).values()
    dense_model = M3Model(dataclasses.replace(model.config, topk_blocks=10_000), model.weights)
    (dense,) = native.Native(dense_model).step(prompt).values()
    difference = (sparse - dense).abs().amax(-1)
    assert difference[:sparse_from].max() < 1e-5
    assert difference[sparse_from] > 1e-3
    assert difference[sparse_from:].min() > 1e-4


# --- every check above can fail: what goes wrong in other engines, done to ours ---------------------------------------

Patch = Callable[[pytest.MonkeyPatch], None]


def patched(name: str, make: Callable[..., Any]) -> Patch:
    """Replace an operation by one made from the right one, in the reference, and have the model run that."""
    right = getattr(reference, name)

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ops, "_is_cpu", lambda tensor: False)
        monkeypatch.setattr(reference, name, make(right))

    return patch


def interleaved(rope: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Rotate neighbours instead of halves."""

    def rotate(x: Tensor, angles: RotaryAngles) -> Tensor:
        width = 2 * angles.cos.shape[-1]
        order = torch.arange(width).view(-1, 2).T.flatten()
        mixed = torch.cat((x[..., :width][..., order], x[..., width:]), dim=-1)
        out = rope(mixed, angles)
        return torch.cat((out[..., :width][..., order.argsort()], out[..., width:]), dim=-1)

    return rotate


def without_own_block(_: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Leave the query's own block to its score."""

    def select(scores: Tensor, positions: Tensor, k: int, block_tokens: int) -> Tensor:
        top = scores.topk(min(k, scores.shape[-1]))
        return top.indices.masked_fill(top.values == -torch.inf, -1).to(torch.int32)

    return select


def unnormalised(_: Callable[..., Any]) -> Callable[..., Any]:
    def route(logits: Tensor, bias: Tensor, k: int, scaling: float) -> tuple[Tensor, Tensor]:
        scores = torch.sigmoid(logits)
        experts = torch.topk(scores + bias, k).indices
        return experts, scores.gather(-1, experts) * scaling

    return route


FAULTS: dict[str, Patch] = {
    "a norm without its one": patched("gemma_rms_norm", lambda right: lambda x, w, eps: right(x, w - 1, eps)),
    "rope over neighbours": patched("partial_rope", interleaved),
    "rope of another base": patched("rotary_angles", lambda right: lambda p, dim, theta: right(p, dim, theta * 1.1)),
    "a position off by one": patched("rotary_angles", lambda right: lambda p, d, t: right(p + (p > 7), d, t)),
    "one selection for all groups": patched(
        "select_blocks", lambda right: lambda s, *rest: right(s.amax(0, keepdim=True).expand_as(s), *rest)
    ),
    "one block too many": patched("select_blocks", lambda right: lambda s, p, k, b: right(s, p, k + 1, b)),
    "own block not forced": patched("select_blocks", without_own_block),
    "block score of the first half": patched(
        "index_score", lambda right: lambda q, k, batch: right(torch.cat((q[..., :4], 0 * q[..., 4:]), -1), k, batch)
    ),
    "no clamp": patched("swiglu_clamped", lambda right: lambda x, alpha, limit: right(x, alpha, 1e9)),
    "a gate clamped below": patched(
        "swiglu_clamped",
        lambda right: (
            lambda x, alpha, limit: right(
                torch.cat((x.chunk(2, -1)[0].clamp(min=-limit), x.chunk(2, -1)[1]), -1), alpha, limit
            )
        ),
    ),
    "a plain silu": patched("swiglu_clamped", lambda right: lambda x, alpha, limit: right(x, 1.0, limit)),
    "router without bias": patched("route_experts", lambda right: lambda x, b, k, s: right(x, 0 * b, k, s)),
    "shares not renormalised": patched("route_experts", unnormalised),
    "routed experts unscaled": patched("route_experts", lambda right: lambda x, b, k, s: right(x, b, k, 1.0)),
}


@pytest.fixture(scope="module")
def clamped(tmp_path_factory: pytest.TempPathFactory) -> tuple[M3Model, dict[str, list[int]], Tensor]:
    """The configuration in which every fault shows, a prompt far beyond block x top-k, and its right logits."""
    directory = write(tmp_path_factory.mktemp("checkpoint"), "clamps_at_work")
    model = native.load(directory)
    prompt = random_sequences(model, [5 * sparse_from_token(model)])
    return model, prompt, hf.logits(directory, next(iter(prompt.values())))


def test_without_a_fault_the_prompt_of_the_faults_is_right(clamped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt, right = clamped
    patched("rotary_angles", lambda right: right)(monkeypatch)
    (logits,) = native.Native(model).step(prompt).values()
    assert (logits - right).abs().max() < TOLERANCE


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_breaks_the_parity(fault: str, clamped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt, right = clamped
    FAULTS[fault](monkeypatch)
    (logits,) = native.Native(model).step(prompt).values()
    assert (logits - right).abs().max() > 100 * TOLERANCE
