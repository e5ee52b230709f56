"""`python -m tiny_model`: train, write the checkpoint into the worker's package, and say how well it answers."""

import argparse
import sys
import time
from pathlib import Path

import torch

from m3_worker.chat.template import ChatTemplate
from tiny_model import checkpoint, corpus, examine, shape, vocabulary
from tiny_model.network import Network
from tiny_model.rows import Rows
from tiny_model.train import Schedule, train

PACKAGED = corpus.ROOT / "worker" / "m3_worker" / "data" / "tiny"
TEMPLATE = corpus.ROOT / "worker" / "m3_worker" / "chat_template.jinja"


def main() -> None:
    """Parse the flags and run."""
    parser = argparse.ArgumentParser(prog="tiny_model", description="Train the tiny M3 that ships with m3_worker.")
    parser.add_argument("--output", type=Path, default=PACKAGED, help="directory of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Schedule.steps)
    parser.add_argument("--threads", type=int, default=2, help="of torch; another number rounds differently")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    torch.manual_seed(flags.seed)
    begun, spent = time.monotonic(), time.process_time()
    known = corpus.load()
    tokenizer = vocabulary.train(_vocabulary_texts(known))
    template = TEMPLATE.read_text(encoding="utf-8")
    network = Network(shape.config_json(tokenizer))
    size = sum(parameter.numel() for parameter in network.model.parameters())
    asked = sum(len(pair.ask) for pair in known.pairs)
    _say(f"{len(known.pairs)} answers, {asked} questions, {len(known.documents)} documents; {size:,} parameters")
    rows = Rows(known, tokenizer, ChatTemplate(template), flags.seed)
    train(network, rows, Schedule(steps=flags.steps), _say)
    network.round()
    written = checkpoint.write(flags.output, network, tokenizer, template)
    _say(
        f"{flags.output}: {written:,} bytes after {time.monotonic() - begun:.0f} s "
        f"({time.process_time() - spent:.0f} s CPU)"
    )
    _report("trained", examine.trained_questions(known), network, rows)
    _report("new", examine.held_out_questions(known), network, rows)


def _report(kind: str, questions: list[tuple[str, str]], network: Network, rows: Rows) -> None:
    missed = examine.unknown(network, rows, questions)
    _say(f"{len(questions) - len(missed)} of {len(questions)} {kind} questions are answered word for word")
    for question in missed:
        _say(f"  not: {question}")


def _vocabulary_texts(known: corpus.Corpus) -> list[str]:
    """Answers count most: they are what has to be written."""
    answers = [pair.answer for pair in known.pairs]
    questions = [question for pair in known.pairs for question in pair.ask[:5]]
    return [*answers * 4, *questions, *known.documents]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
