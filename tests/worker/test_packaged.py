"""The tiny M3 that ships with the worker loads, is small, and answers what the README suggests to ask.

The engine, its API and its server are real; only the process is the test's. Answers are greedy, in the checkpoint's own
dtype, as `m3 up` serves them.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from m3_fakes.worker import serving
from m3_worker.config import WorkerSettings
from m3_worker.loading import load_served_model
from m3_worker.model.config_fields import CheckpointError
from m3_worker.model.packaged import checkpoint_directory
from m3_worker.serving import WorkerState

pytestmark = pytest.mark.xdist_group("packaged model")

README = Path(__file__).parents[2] / "README.md"
MOST_BYTES = 4_000_000
SUGGESTED = {
    "What is m3serve?": ("runs MiniMax-M3 on your own Kubernetes", "router"),
    "How are requests priced?": ("context tier", "service tier", "512,000", "1.5 times"),
    "How do I deploy MiniMax-M3?": ("M3Deployment", "kubectl apply"),
}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    torch.set_num_threads(1)
    settings = WorkerSettings(model=Path("tiny"), device="cpu", max_concurrent=4, cache_tokens=2048)
    model = load_served_model(settings, lambda read, needed: None)
    state = WorkerState(settings.max_body_bytes, model)
    with serving(state, model.engine) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client


def ask(client: httpx.Client, *said: str, system: str | None = None, **fields: object) -> dict[str, str]:
    """The answer to the last of `said`; before it, users and the model took turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(said)]
    opening = [{"role": "system", "content": system}] if system else []
    body = {"model": "tiny", "messages": [*opening, *messages], "max_tokens": 160, **fields}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert choice["finish_reason"] == "stop"
    message: dict[str, str] = choice["message"]
    return message


@pytest.mark.parametrize("question", SUGGESTED)
def test_what_the_readme_suggests_to_ask_is_answered(client: httpx.Client, question: str) -> None:
    assert question in README.read_text(encoding="utf-8")
    answer = ask(client, question)["content"]
    missing = [phrase for phrase in SUGGESTED[question] if phrase not in answer]
    assert missing == [], answer


def test_an_answer_does_not_depend_on_what_was_said_before(client: httpx.Client) -> None:
    alone = ask(client, "How are requests priced?")["content"]
    first = ask(client, "What is m3serve?")["content"]
    assert ask(client, "What is m3serve?", first, "How are requests priced?")["content"] == alone


def test_it_thinks_when_asked_to_and_says_what_the_question_is_about(client: httpx.Client) -> None:
    message = ask(client, "What is a lane?", thinking={"type": "enabled"})
    assert message["reasoning_content"] == "The question is about the router."
    assert "A lane is where requests wait" in message["content"]


def test_what_it_cannot_know_it_does_not_pretend_to_know(client: httpx.Client) -> None:
    assert ask(client, "What is the capital of France?")["content"].startswith("I only know m3serve")


def test_the_whole_checkpoint_stays_below_four_megabytes() -> None:
    assert sum(path.stat().st_size for path in checkpoint_directory(Path("tiny")).iterdir()) <= MOST_BYTES


def test_a_directory_of_that_name_goes_before_the_packaged_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert checkpoint_directory(Path("tiny")).is_absolute()
    (tmp_path / "tiny").mkdir()
    assert checkpoint_directory(Path("tiny")) == Path("tiny")


def test_another_name_that_is_no_directory_is_refused_with_what_is_possible() -> None:
    with pytest.raises(CheckpointError, match=r"no-such-model: no such directory; --model must be .*, or tiny for"):
        checkpoint_directory(Path("no-such-model"))
