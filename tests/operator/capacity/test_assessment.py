"""The verdict on a spec: with the numbers, with what to change, and with what is not known by its name."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_operator.api import M3Deployment, SpecError, parse_deployment
from m3_operator.capacity.assessment import Checkpoint, assess
from m3_operator.capacity.releases import PACKAGED

PVC = {"pvc": {"claimName": "weights"}}


def deployment(
    release: str | None = "MiniMax-M3",
    gib: int | None = 140,
    source: dict[str, Any] | None = None,
    parallelism: dict[str, Any] | None = None,
    **engine: Any,
) -> M3Deployment:
    model = {"name": "MiniMax-M3", "source": source or PVC} | ({"release": release} if release else {})
    spec = {
        "model": model,
        "engine": engine,
        "parallelism": parallelism or {"gpusPerNode": 8},
        "accelerator": {} if gib is None else {"memoryGiB": gib},
    }
    return parse_deployment({"metadata": {"name": "m3"}, "spec": spec}, strict=True)


def test_what_fits_is_said_with_the_numbers() -> None:
    found = assess(deployment(maxContextTokens=524_288))
    assert (found.reason, found.answer) == ("Fits", "yes")
    assert found.message == (
        "rank 0 of 8 holds 113.0 GiB of weights, 22.5 GiB of cache and 4.5 GiB of reserve, 1.7 MiB stay free; "
        "room for 533,504 tokens: 1 sequence of 524,288 tokens at once"
    )


CASES: list[tuple[str, M3Deployment, str, str]] = [
    (
        "weights that are too large",
        deployment(gib=79),
        "DoesNotFit",
        "rank 0 of 8 needs 113.0 GiB for weights, 2.0 GiB for the runtime: 36.0 GiB more than the 79 GiB of "
        "accelerator.memoryGiB; any of these would do: serve a checkpoint in MXFP8; "
        "set parallelism.nodes to 2 (16 GPUs a group); use GPUs of at least 115 GiB",
    ),
    (
        "a context that is too long",
        deployment(maxContextTokens=1_048_576),
        "DoesNotFit",
        "one sequence of 1,048,576 tokens needs 44.2 GiB of cache on every rank, and beside 113.0 GiB of weights and "
        "4.5 GiB of reserve there is room for 533,504 tokens (22.5 GiB) in the 140 GiB of accelerator.memoryGiB; any "
        "of these would do: set engine.maxContextTokens to at most 533,504; set engine.cacheDtype to fp8; serve a "
        "checkpoint in MXFP8; set parallelism.nodes to 2 (16 GPUs a group); use GPUs of at least 165 GiB",
    ),
    (
        "a cache that is too large",
        deployment(cacheTokens=1_048_576, maxContextTokens=4096, maxConcurrent=256),
        "DoesNotFit",
        "rank 0 of 8 needs 113.0 GiB for weights, 2.0 GiB for the runtime and 44.2 GiB for engine.cacheTokens: 19.2 "
        "GiB more than the 140 GiB of accelerator.memoryGiB; any of these would do: remove engine.cacheTokens",
    ),
    (
        "a cache that is too small",
        deployment(cacheTokens=1000, maxContextTokens=4096, gib=None),
        "DoesNotFit",
        "one sequence of 4,096 tokens needs 177.0 MiB of cache on every rank, and engine.cacheTokens makes room for "
        "896 tokens; any of these would do: set engine.cacheTokens to at least 4,096; set engine.maxContextTokens to "
        "at most 896",
    ),
    (
        "a context beyond the model",
        deployment(None, None, {"tiny": {"context": 4096}}, {"gpusPerNode": 0}, maxContextTokens=8192),
        "DoesNotFit",
        "engine.maxContextTokens is 8,192: the model was made for 4,096 tokens; any of these would do: set "
        "engine.maxContextTokens to at most 4,096",
    ),
    (
        "one GPU too few by far",
        deployment(parallelism={"gpusPerNode": 1}),
        "DoesNotFit",
        "rank 0 of 1 needs 795.5 GiB for weights, 2.0 GiB for the runtime: 657.5 GiB more than the 140 GiB of "
        "accelerator.memoryGiB; any of these would do: set parallelism.gpusPerNode to 8; set parallelism.nodes to 8 "
        "(8 GPUs a group); use GPUs of at least 798 GiB",
    ),
    (
        "slots that cannot be shared",
        deployment(parallelism={"gpusPerNode": 8, "redundantExperts": 4}, gib=None),
        "DoesNotFit",
        "parallelism.redundantExperts is 4: 128 experts and 4 copies are 132 slots a layer, which 8 ranks cannot share "
        "evenly; set it to 0 (16 slots a rank) or 8 (17 slots a rank)",
    ),
    (
        "copies of experts that have no room",
        deployment(gib=79, release="MiniMax-M3-MXFP8", parallelism={"gpusPerNode": 8, "redundantExperts": 48}),
        "DoesNotFit",
        "rank 0 of 8 needs 79.9 GiB for weights",
    ),
    (
        "a precision that the engine does not read",
        deployment("MiniMax-M3.1-Flash"),
        "NotSupported",
        "the native engine reads checkpoints in bfloat16, float32 and MXFP8, and this is NVFP4",
    ),
    (
        "a model that nobody names",
        deployment(None),
        "ModelUnknown",
        "the size of the model is not known: the config.json in model.source.pvc cannot be read from here, and "
        "model.release does not say which published release it is",
    ),
    (
        "memory that nobody declares",
        deployment(gib=None),
        "MemoryUnknown",
        "rank 0 of 8 needs 113.0 GiB for weights and 45,312 bytes for each token of cache: a GPU of at least 115 GiB; "
        "accelerator.memoryGiB does not say how much memory a GPU has",
    ),
    (
        "a CPU",
        deployment(None, None, {"packaged": {}}, {"gpusPerNode": 0}),
        "MemoryUnknown",
        "rank 0 of 1 needs 3.4 MiB for weights and 1,216 bytes for each token of cache; the memory of nodes is not "
        "declared, and not checked",
    ),
    (
        "a flag of a later version",
        deployment(args=["--cache-dtype", "fp4"]),
        "FlagsUnknown",
        "engine.args: --cache-dtype: Input should be 'auto', 'float32', 'bfloat16' or 'fp8'",
    ),
    (
        "a flag that names another model",
        deployment(args=["--model=/elsewhere"]),
        "FlagsUnknown",
        "engine.args: --model /elsewhere replaces what the spec says of it, and is not known",
    ),
    (
        "a flag that names another device",
        deployment(args=["--device", "cpu"]),
        "FlagsUnknown",
        "engine.args: --device cpu replaces what the spec says of it, and is not known",
    ),
    (
        "a random model, of which there is no other release",
        deployment(None, 1, {"tiny": {"layers": 64, "hidden": 4096, "dtype": "bfloat16"}}, {"gpusPerNode": 1}),
        "DoesNotFit",
        "rank 0 of 1 needs 1.2 GiB for weights, 2.0 GiB for the runtime: 2.2 GiB more than the 1 GiB of "
        "accelerator.memoryGiB; any of these would do: use GPUs of at least 4 GiB",
    ),
    (
        "a worker that computes nothing",
        deployment(gib=1, args=["--simulate"]),
        "Simulated",
        "engine.args has --simulate: nothing is computed, and no GPU memory needed",
    ),
]


@pytest.mark.parametrize(
    ("found", "reason", "words"), [case[1:] for case in CASES], ids=[case[0].replace(" ", "-") for case in CASES]
)
def test_the_reason_and_the_words(found: M3Deployment, reason: str, words: str) -> None:
    told = assess(found)
    assert told.reason == reason
    assert told.message.startswith(words)
    assert len(told.message) < 1024, "longer than a condition's message"


@pytest.mark.parametrize(
    ("arguments", "tokens"),
    [
        (["--cache-dtype", "fp8"], 1_048_576),
        (["--cache-dtype=fp8"], 1_048_576),
        (["--log-level", "debug"], 533_504),
        (["--max-context-tokens=4096", "--max-context-tokens", "8192"], 8192),  # as the worker: the last one counts
    ],
)
def test_flags_of_the_user_count_as_they_do_in_the_worker(arguments: list[str], tokens: int) -> None:
    capacity = assess(deployment(args=arguments)).capacity
    assert capacity is not None
    assert capacity.context_tokens == tokens


def test_a_config_that_was_read_counts_before_the_release() -> None:
    found = assess(deployment(), Checkpoint(shape=PACKAGED, origin="/models/config.json"))
    assert found.model == "of /models/config.json"
    assert found.capacity is not None
    assert found.capacity.first.total_bytes < 2**30


def test_a_tiny_model_is_known_by_its_spec_whatever_was_read() -> None:
    tiny = deployment(None, 10, {"tiny": {}}, {"gpusPerNode": 1})
    assert assess(tiny, Checkpoint(shape=PACKAGED, origin="/models/config.json")).model == "a random tiny model"


@pytest.mark.parametrize("source", [{"tiny": {}}, {"packaged": {}}])
def test_a_release_beside_a_source_of_known_size_is_refused(source: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"model\.release: only with pvc, hostPath, image and huggingFace"):
        deployment(source=source)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("set engine.maxContextTokens to at most 533,504", deployment(maxContextTokens=533_504)),
        ("set engine.cacheDtype to fp8", deployment(maxContextTokens=1_048_576, cacheDtype="fp8")),
        ("serve a checkpoint in MXFP8", deployment("MiniMax-M3-MXFP8", maxContextTokens=1_048_576)),
        (
            "set parallelism.nodes to 2 (16 GPUs a group)",
            deployment(maxContextTokens=1_048_576, parallelism={"nodes": 2, "gpusPerNode": 8}),
        ),
        ("use GPUs of at least 165 GiB", deployment(gib=165, maxContextTokens=1_048_576)),
    ],
)
def test_each_change_that_is_named_would_do(change: str, found: M3Deployment) -> None:
    assert change in assess(deployment(maxContextTokens=1_048_576)).remedies
    assert assess(found).reason == "Fits"


def test_copies_that_do_not_fit_are_named_among_what_to_change() -> None:
    crowded = deployment("MiniMax-M3-MXFP8", 79, parallelism={"gpusPerNode": 8, "redundantExperts": 48})
    assert "remove parallelism.redundantExperts" in assess(crowded).remedies


def test_a_change_that_alone_would_not_do_is_not_named() -> None:
    """600,000 tokens of cache hold no 1M sequence, and as 599,936 they are more than the 26,862,092,288 bytes left."""
    crowded = {"cacheTokens": 600_000, "maxContextTokens": 1_048_576}
    found = assess(deployment(**crowded))
    assert found.reason == "DoesNotFit"
    assert found.remedies == (
        "remove engine.cacheTokens and set engine.maxContextTokens to at most 533,504",
        "remove engine.cacheTokens and set engine.cacheDtype to fp8",
        "remove engine.cacheTokens and serve a checkpoint in MXFP8",
        "remove engine.cacheTokens and set parallelism.nodes to 2 (16 GPUs a group)",
        "remove engine.cacheTokens and use GPUs of at least 165 GiB",
    )


@settings(deadline=None)
@given(
    release=st.sampled_from(["MiniMax-M3", "MiniMax-M3-MXFP8"]),
    gib=st.integers(1, 200),
    nodes=st.integers(1, 64),
    gpus=st.sampled_from([1, 2, 4, 8]),
    redundant=st.none() | st.integers(0, 4096),
    cache=st.none() | st.integers(16, 2**31),
    context=st.none() | st.integers(16, 2**20),
)
def test_every_answer_is_a_sentence_that_a_condition_can_hold(
    *, release: str, gib: int, nodes: int, gpus: int, redundant: int | None, cache: int | None, context: int | None
) -> None:
    engine = {"cacheTokens": cache, "maxContextTokens": context}
    parallelism = {"nodes": nodes, "gpusPerNode": gpus, "redundantExperts": redundant}
    told = assess(deployment(release, gib, parallelism=parallelism, **engine))
    assert told.reason in ("Fits", "DoesNotFit")
    assert 20 < len(told.message) <= 1024
    assert bool(told.remedies) <= (told.reason == "DoesNotFit")
