"""Settings: arguments and parsing are each other's inverse, and a bad value is told in one line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_worker.config import RankSettings, TinySettings, WorkerSettings

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
counts = st.integers(1, 2**20)

worker_settings = st.builds(
    WorkerSettings,
    model=names.map(Path),
    served_model_name=st.none() | names,
    host=names,
    port=st.integers(0, 65535),
    device=st.sampled_from(["auto", "cpu", "cuda"]),
    dtype=st.sampled_from(["auto", "float32", "bfloat16"]),
    max_context_tokens=st.none() | counts,
    max_concurrent=st.integers(1, 4096),
    step_tokens=counts,
    step_milliseconds=st.none() | st.floats(0.001, 3_600_000),
    step_deadline_seconds=st.floats(0.001, 86400),
    host_cache_tokens=st.integers(0, 2**40),
    kv_events_zmq=st.just("tcp://127.0.0.1:5557"),
    kv_events_zmq_replay=st.none() | st.just("tcp://127.0.0.1:5558"),
    cache_tokens=st.none() | counts,
    max_waiting=st.integers(0, 2**20),
    max_body_bytes=st.integers(1024, 2**31),
    drain_seconds=st.floats(0, 86400),
    threads=st.none() | st.integers(1, 1024),
    log_level=st.sampled_from(["debug", "info", "warning", "error"]),
)


def test_missed_events_can_be_asked_for_only_where_events_are_published(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        WorkerSettings.parse_arguments(["--model=m", "--kv-events-zmq-replay=tcp://127.0.0.1:5558"])
    assert "--kv-events-zmq-replay tcp://127.0.0.1:5558: needs --kv-events-zmq" in capsys.readouterr().err


@given(worker_settings)
def test_worker_arguments_parse_to_the_same_settings(settings: WorkerSettings) -> None:
    assert WorkerSettings.parse_arguments(settings.arguments()) == settings


@given(
    st.builds(
        WorkerSettings,
        simulate=st.just(True),
        model=st.none() | names.map(Path),
        simulate_prefill_tokens_per_second=st.floats(0.001, 1e9),
        simulate_token_seconds=st.floats(0, 60),
        simulate_load_factor=st.floats(0, 100),
        simulate_answer_tokens=counts,
        simulate_load_seconds=st.floats(0, 3600),
    )
)
def test_arguments_of_a_simulation_parse_to_the_same_settings(settings: WorkerSettings) -> None:
    assert WorkerSettings.parse_arguments(settings.arguments()) == settings


@given(
    st.builds(
        TinySettings,
        directory=names.map(Path),
        seed=st.integers(0, 2**63 - 1),
        heads=st.sampled_from([2, 4, 8, 16]),
        experts=st.integers(8, 16),
        dtype=st.sampled_from(["float32", "bfloat16"]),
    )
)
def test_tiny_arguments_parse_to_the_same_settings(settings: TinySettings) -> None:
    assert TinySettings.parse_arguments(settings.arguments()) == settings


def test_only_what_differs_from_the_defaults_is_rendered() -> None:
    assert WorkerSettings(model=Path("/m"), port=9101).arguments() == ["--model=/m", "--port=9101"]
    assert TinySettings(directory=Path("/m"), seed=7).arguments() == ["/m", "--seed=7"]
    assert WorkerSettings(simulate=True).arguments() == ["--simulate"]


def test_flags_are_read_in_both_common_forms() -> None:
    spaced = WorkerSettings.parse_arguments(["--model", "/m", "--served-model-name", "MiniMax-M3", "--device", "cpu"])
    assert spaced == WorkerSettings(model=Path("/m"), served_model_name="MiniMax-M3", device="cpu")


def test_the_served_name_defaults_to_the_name_of_the_directory() -> None:
    assert WorkerSettings(model=Path("/models/MiniMax-M3")).model_name == "MiniMax-M3"
    assert WorkerSettings(model=Path("/models/x"), served_model_name="y").model_name == "y"
    assert WorkerSettings(model=Path("/models/x"), simulate=True).model_name == "x"
    assert WorkerSettings(simulate=True).model_name == "simulated"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--model=/m", "--port=70000"], "--port 70000: input should be less than or equal to 65535"),
        (["--model=/m", "--step-tokens=many"], "--step-tokens many: input should be a valid integer"),
        (["--model=/m", "--device=tpu"], "--device tpu: input should be 'auto', 'cpu' or 'cuda'"),
        (["--model=/m", "--drain-seconds=nan"], "--drain-seconds nan: input should be a finite number"),
        (["--port=1"], "--model is required: the directory of a checkpoint (or --simulate, which needs none)"),
        (["--simulate=perhaps"], "--simulate perhaps: input should be a valid boolean"),
        (["--model=/m", "--simulate-token-seconds=0.1"], "--simulate-token-seconds 0.1: needs --simulate"),
        (["--simulate", "--simulate-load-factor=-1"], "--simulate-load-factor -1: input should be greater than"),
        (["--model=/m", "--prot=1"], "unrecognized arguments: --prot=1"),
    ],
)
def test_a_bad_worker_flag_ends_with_one_line_and_code_2(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        WorkerSettings.parse_arguments(argv)
    message = capsys.readouterr().err
    assert end.value.code == 2
    assert message.startswith(f"m3-worker: {line}")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["d", "--heads=6", "--kv-heads=4"], "--heads 6: must be a multiple of --kv-heads 4"),
        (["d", "--experts=2", "--experts-per-token=3"], "--experts-per-token 3: must be at most --experts 2"),
        (["d", "--layers=2", "--dense-layers=3"], "--dense-layers 3: must be at most --layers 2"),
        (["d", "--head-dim=64", "--index-dim=16"], "--index-dim 16: must be at least the 32 rotated dimensions"),
        (["d", "--head-dim=18"], "--head-dim 18: input should be a multiple of 4"),
        ([], "the following arguments are required: DIRECTORY"),
    ],
)
def test_a_tiny_shape_that_cannot_be_ends_with_one_line_and_code_2(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        TinySettings.parse_arguments(argv)
    message = capsys.readouterr().err
    assert end.value.code == 2
    assert message.startswith(f"m3 tiny: {line}")
    assert message.count("\n") == 1


def test_a_rank_is_read_from_the_environment() -> None:
    rank = RankSettings.from_environment(
        {
            "M3_NODE_RANK": "1",
            "M3_NODES": "2",
            "M3_GPUS_PER_NODE": "8",
            "MASTER_ADDR": "tiny-g0-r0.tiny-g0",
            "MASTER_PORT": "29501",
            "HOME": "/root",
        }
    )
    assert (rank.node_rank, rank.nodes, rank.gpus_per_node) == (1, 2, 8)
    assert (rank.master_address, rank.master_port, rank.world_size) == ("tiny-g0-r0.tiny-g0", 29501, 16)


def test_no_variables_mean_one_rank() -> None:
    assert RankSettings.from_environment({}).world_size == 1
    assert RankSettings.from_environment({"M3_NODES": "1", "M3_GPUS_PER_NODE": "0"}).world_size == 1


def test_ranks_count_through_nodes() -> None:
    rank = RankSettings.from_environment(
        {"M3_NODES": "2", "M3_NODE_RANK": "1", "M3_GPUS_PER_NODE": "4", "M3_LOCAL_RANK": "3"}
    )
    assert (rank.rank, rank.world_size) == (7, 8)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"M3_NODES": "two"}, "M3_NODES=two: Input should be a valid integer"),
        ({"M3_NODE_RANK": "2", "M3_NODES": "2"}, "M3_NODE_RANK=2: must be below M3_NODES=2"),
    ],
)
def test_a_bad_rank_variable_is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankSettings.from_environment(environment)
