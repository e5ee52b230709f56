"""From the corpus to rows of tokens: conversations in the form of the chat template, and pieces of documentation.

Owns what a row holds and how a question is varied; every draw comes from the generator that it is given. A row is one
conversation of as many turns as fit: later turns learn to answer whatever was said before. Half of the rows are cut out
of a conversation and have no system turn, which is long and teaches nothing. Only what the model has to say itself
counts; most of all how an answer begins, which is where the right one is chosen; questions count a little.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from m3_worker.chat.template import ChatTemplate
from tiny_model.corpus import Corpus, Pair
from tiny_model.pictures import Picture, draw

QUESTION_WEIGHT = 0.1
BEGINNING_WEIGHT = 3.0
BEGINNING_TOKENS = 4
HEADLESS_SHARE = 0.5
VARIED_SHARE = 0.4
MODES = ("adaptive", "disabled", "enabled")
MODE_SHARES = (0.6, 0.2, 0.2)
SYSTEM_SHARE = 0.2
SYSTEMS = (
    "You are a support agent for m3serve.",
    "You answer questions about m3serve.",
    "Answer briefly.",
    "Be polite and short.",
    "You are an assistant for platform engineers.",
)
DOCUMENT_SHARE = 0.03
PICTURE_SHARE = 0.1
_TRIES = 4
OPENINGS = ("Please tell me: ", "Can you tell me: ", "Hi, ", "Hello, ", "One question: ", "Hi! ", "Question: ")
ENDINGS = (" Thanks.", " Please answer briefly.", " Please.", " Thank you!")


@dataclass
class Row:
    """Token ids, the weight of each as a target, and the pictures in it."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    def add(self, ids: list[int], weight: float) -> None:
        self.ids += ids
        self.weights += [weight] * len(ids)


@dataclass(frozen=True)
class Batch:
    """ids, weights: [B, S], weights 0 where padded. pixels, grids: as the network takes them, or None."""

    ids: Tensor
    weights: Tensor
    pixels: Tensor | None
    grids: Tensor | None


@dataclass(frozen=True)
class _Frame:
    """The text around questions and answers, for one mode and system message."""

    head: str
    before_answer: str
    after_reasoning: str
    after_answer: str


class Rows:
    """An endless source of rows."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, template: ChatTemplate, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._tokenizer = tokenizer
        self._template = template
        self._pairs = self._shuffled(corpus.pairs)
        self._document = self._tokens("\n\n".join(corpus.documents))
        self._encode = lru_cache(maxsize=100_000)(self._tokens)
        self._frame = lru_cache(maxsize=64)(self._frame_of)

    def batch(self, rows: int, tokens: int) -> Batch:
        """The next `rows` rows of at most `tokens` tokens, padded to the longest."""
        made = [self._row(tokens) for _ in range(rows)]
        width = max(len(row.ids) for row in made)
        pictures = [picture for row in made for picture in row.pictures]
        return Batch(
            torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in made]),
            torch.tensor([row.weights + [0.0] * (width - len(row.ids)) for row in made]),
            torch.from_numpy(np.concatenate([picture.pixels for picture in pictures])) if pictures else None,
            torch.tensor([picture.grid for picture in pictures]) if pictures else None,
        )

    def exam(self, question: str, answer: str) -> tuple[list[int], int]:
        """The tokens of one plain question with its answer, and how many of them are the prompt."""
        frame = self._frame("adaptive", None)
        prompt = [*self._encode(frame.head), *self._tokens(question), *self._encode(frame.before_answer)]
        said = [*self._encode(frame.after_reasoning), *self._encode(answer), *self._encode("[e~[")]
        return [*prompt, *said], len(prompt)

    def _row(self, tokens: int) -> Row:
        kind = self._random.random()
        if kind < DOCUMENT_SHARE:
            start = int(self._random.integers(len(self._document) - tokens))
            return Row(self._document[start : start + tokens], [1.0] * tokens)
        return self._conversation(tokens, has_pictures=kind < DOCUMENT_SHARE + PICTURE_SHARE)

    def _conversation(self, tokens: int, *, has_pictures: bool) -> Row:
        mode = str(self._random.choice(MODES, p=MODE_SHARES))
        system = str(self._random.choice(SYSTEMS)) if self._random.random() < SYSTEM_SHARE else None
        frame = self._frame(mode, system)
        row = Row()
        is_headless = self._random.random() < HEADLESS_SHARE
        row.add(self._encode(frame.after_answer if is_headless else frame.head), 0.0)
        tries = _TRIES
        while True:
            turn = Row()
            if has_pictures and self._random.random() < 0.7:
                self._picture_turn(turn, frame, mode)
            else:
                self._turn(turn, frame, mode)
            if len(row.ids) + len(turn.ids) > tokens:
                tries -= 1
                if not tries:
                    return row
                continue
            row.ids += turn.ids
            row.weights += turn.weights
            row.pictures += turn.pictures

    def _turn(self, turn: Row, frame: _Frame, mode: str) -> None:
        pair = next(self._pairs)
        question = self._varied(str(self._random.choice(pair.ask)))
        turn.add(self._encode(question) if question in pair.ask else self._tokens(question), QUESTION_WEIGHT)
        self._answer(turn, frame, mode, pair.topic, pair.answer)

    def _picture_turn(self, turn: Row, frame: _Frame, mode: str) -> None:
        picture = draw(self._random)
        image = f"]<]start of image[>[{']<]image[>[' * picture.tokens}]<]end of image[>["
        parts = [(image, 0.0), (picture.question, QUESTION_WEIGHT)]
        for text, weight in parts if self._random.random() < 0.7 else reversed(parts):
            turn.add(self._encode(text), weight)
        turn.pictures.append(picture)
        self._answer(turn, frame, mode, "a picture", picture.answer)

    def _answer(self, turn: Row, frame: _Frame, mode: str, topic: str, answer: str) -> None:
        turn.add(self._encode(frame.before_answer), 0.0)
        if mode == "enabled":
            turn.add(self._encode(f"The question is about {topic}."), BEGINNING_WEIGHT)
        turn.add(self._encode(frame.after_reasoning), 1.0)
        said = self._encode(answer)
        turn.add(said[:BEGINNING_TOKENS], BEGINNING_WEIGHT)
        turn.add(said[BEGINNING_TOKENS:], 1.0)
        turn.add(self._encode("[e~["), 1.0)
        turn.add(self._encode(frame.after_answer), 0.0)

    def _varied(self, question: str) -> str:
        """As it is, in most cases; else said a little differently."""
        random = self._random
        if random.random() > VARIED_SHARE:
            return question
        words = question.split(" ")
        if len(words) > 4 and random.random() < 0.3:
            del words[int(random.integers(len(words)))]
        text = " ".join(words)
        if random.random() < 0.3:
            text = text.removesuffix("?").removesuffix(".")
        if random.random() < 0.25:
            text = str(random.choice(OPENINGS)) + text
        if random.random() < 0.15:
            text += str(random.choice(ENDINGS))
        return text.lower() if random.random() < 0.3 else text

    def _shuffled(self, pairs: tuple[Pair, ...]) -> Iterator[Pair]:
        """Every answer as often as its weight says, in a new order, again and again."""
        copies = [pair for pair in pairs for _ in range(pair.weight)]
        while True:
            for number in self._random.permutation(len(copies)):
                yield copies[number]

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _frame_of(self, mode: str, system: str | None) -> _Frame:
        """Found by rendering marks in the places of texts, so that whatever the template says is learned."""
        opening = [{"role": "system", "content": system}] if system else []
        messages = [*opening, {"role": "user", "content": "(Q)"}]
        variables = {"thinking_mode": mode}
        prompt = self._template.render(messages, variables)
        answer = {"role": "assistant", "content": "(A)", "reasoning_content": "(R)" if mode == "enabled" else ""}
        longer = self._template.render([*messages, answer, {"role": "user", "content": "(S)"}], variables)
        if not longer.startswith(prompt):
            raise ValueError("the chat template does not render an answered turn as it was asked and answered")
        head, before_answer = prompt.split("(Q)")
        said, rest = longer.removeprefix(prompt).split("(A)")
        return _Frame(head, before_answer, said.removeprefix("(R)"), rest.split("(S)")[0].removeprefix("[e~["))
