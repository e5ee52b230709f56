"""How well the network knows its answers, and finds them for questions that it has never seen.

An answer is known when each of its tokens is the most likely one after the right ones before it: then greedy decoding
writes it. Asked as the demo asks: one question, no system message, adaptive thinking.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import yaml

from tiny_model.corpus import Corpus
from tiny_model.network import Network
from tiny_model.rows import Rows

HELD_OUT = Path(__file__).parent / "held_out.yaml"
QUESTIONS_OF_ONE_ANSWER = 5
_BATCH = 32


def trained_questions(corpus: Corpus) -> list[tuple[str, str]]:
    """The first questions of each answer, with it."""
    return [(question, pair.answer) for pair in corpus.pairs for question in pair.ask[:QUESTIONS_OF_ONE_ANSWER]]


def held_out_questions(corpus: Corpus) -> list[tuple[str, str]]:
    """Questions that no training sees, with the right answer. Raises ValueError if one is in the corpus after all."""
    answers = {question: pair.answer for pair in corpus.pairs for question in pair.ask}
    entries = yaml.safe_load(HELD_OUT.read_text(encoding="utf-8"))
    for entry in entries:
        if entry["ask"] in answers or entry["like"] not in answers:
            raise ValueError(f"{HELD_OUT}: {entry}: ask must not be in the corpus, and like must be")
    return [(entry["ask"], answers[entry["like"]]) for entry in entries]


@torch.inference_mode()
def unknown(network: Network, rows: Rows, questions: Iterable[tuple[str, str]]) -> list[str]:
    """The questions that are not answered as they should be."""
    network.teaches_index = False
    exams = sorted(((*rows.exam(question, answer), question) for question, answer in questions), key=_length)
    batches = (exams[start : start + _BATCH] for start in range(0, len(exams), _BATCH))
    return [question for some in batches for question in _missed(network, some)]


def _length(exam: tuple[list[int], int, str]) -> int:
    return len(exam[0])


def _missed(network: Network, exams: Sequence[tuple[list[int], int, str]]) -> list[str]:
    width = max(map(_length, exams))
    hidden = network.hidden(torch.tensor([ids + [0] * (width - len(ids)) for ids, _, _ in exams]))
    missed = []
    for (ids, start, question), states in zip(exams, hidden, strict=True):
        said = network.model.lm_head(states[start - 1 : len(ids) - 1]).argmax(-1)
        if said.tolist() != ids[start:]:
            missed.append(question)
    return missed
