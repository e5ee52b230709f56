"""What an answer may look like: JSON by a schema, a regular expression or a Lark grammar, enforced token by token.

Owns the compiling of what a stranger wrote (bounded in size, effort and memory; kept for the next request) and where a
single answer stands in it. llguidance does both; here are its limits, its vocabulary, and the beginning: a constraint
may hold only after some text, the end of thinking for instance. Applying the masks to logits is sampling's; imports no
torch. No token is ever skipped ahead (jump-free): each one is sampled, so that log probabilities mean what they say.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray

Mask = NDArray[np.int32]
"""One bit a token, from the lowest bit of the first word on: 1 allows it."""

MAX_TEXT_BYTES = 65536
_MAX_SHOWN = 300
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"
"""Between JSON tokens. Bounded, or a model that likes spaces may never come to an end."""


class GrammarError(Exception):
    """A grammar that cannot be enforced; one line that says why."""


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What is to be enforced, and from where on."""

    kind: Literal["json_schema", "json_object", "regex", "lark"]
    text: str = ""
    """The schema as JSON, the expression (it must match the whole answer), or the grammar; nothing for json_object."""
    after: str | None = None
    """The constraint begins after this text, which must come; None: with the first token."""
    opening: str | None = None
    """With `after`: a token by which the answer may begin. Only if it does, the constraint waits for `after`."""


class Vocabulary(Protocol):
    """What grammars have to know of a tokenizer; `tokenizer.Tokenizer` is one."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for; none for an id without a token."""

    def text_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text; special tokens add none."""


class Grammars:
    """The grammars of one model: compiled once, kept as long as they are used. Safe to use from several threads."""

    def __init__(
        self, vocabulary: Vocabulary, vocab_size: int, end_token_ids: Iterable[int], *, kept: int = 128
    ) -> None:
        """vocab_size: width of the logits; kept: how many compiled grammars are remembered."""
        self._tokens = _Tokens(vocabulary, vocab_size, sorted(end_token_ids))
        self._kept = kept
        self._lock = threading.Lock()
        self._grammars: OrderedDict[GrammarSpec, Grammar] = OrderedDict()
        self._compiling = threading.Lock()  # one at a time: a stranger's effort must not take every core

    def compile(self, spec: GrammarSpec) -> "Grammar":
        """The compiled grammar: microseconds if it is known, up to half a second if not, so call it off the event loop.

        Raises GrammarError.
        """
        grammar = self._known(spec)
        if grammar is not None:
            return grammar
        with self._compiling:
            grammar = self._known(spec) or Grammar(spec, self._tokens)
        with self._lock:
            self._grammars[spec] = grammar
            while len(self._grammars) > self._kept:
                self._grammars.popitem(last=False)
        return grammar

    def _known(self, spec: GrammarSpec) -> "Grammar | None":
        with self._lock:
            grammar = self._grammars.get(spec)
            if grammar is not None:
                self._grammars.move_to_end(spec)
            return grammar


class Grammar:
    """A compiled grammar, shared by all answers that are bound by it."""

    def __init__(self, spec: GrammarSpec, tokens: "_Tokens") -> None:
        """Raises GrammarError if it is too large, wrong, unsupported, or allows no answer."""
        self.spec = spec
        self.tokens = tokens
        self.opening_id = _opening_id(spec, tokens)
        self._start = LLMatcher(tokens.library, _library_grammar(spec), log_level=0, limits=_limits())
        self._probe("")
        if spec.kind.startswith("json"):
            self._probe('{"')

    def matcher(self) -> "Matcher":
        """Where a new answer stands: at the beginning."""
        return Matcher(self, self._start.deep_copy())

    def _probe(self, beginning: str) -> None:
        """Raise GrammarError if the mask after a beginning costs too much: what is too complex shows there, mostly."""
        probe = self._start.deep_copy()
        probe.try_consume_tokens(self.tokens.library.tokenize_str(beginning))
        probe.compute_bitmask()
        if probe.is_error():
            raise GrammarError(_one_line(probe.get_error()))


class Matcher:
    """Where one answer stands in its grammar. Belongs to one thread.

    opening (if there is one) -> free until `after` -> bound -> finished, or failed for good. While it is free, an
    answer cannot end; once finished, it can only end.
    """

    def __init__(self, grammar: Grammar, library: LLMatcher) -> None:
        self.grammar = grammar
        self.failure: str | None = None
        """Why the grammar cannot be enforced any longer, in one line."""
        self.library = library
        self._after = (grammar.spec.after or "").encode()
        self._is_opening = grammar.opening_id is not None
        self._is_free = bool(self._after) and not self._is_opening
        self._tail = b""  # of the free text, in which `after` may have begun

    @property
    def is_bound(self) -> bool:
        """Whether the grammar decides about the next token."""
        return not self._is_free

    @property
    def is_finished(self) -> bool:
        """Whether nothing but the end may follow."""
        return self.is_bound and not self.failure and self.library.is_stopped()

    def accept(self, token_id: int) -> bool:
        """Take the next token of the answer. False if the grammar does not allow it: `failure` says so then."""
        if self._is_opening:
            self._is_opening = False
            if token_id == self.grammar.opening_id:
                self._is_free = True
                return True
        if self._is_free:
            return self._pass(self.grammar.tokens.text_bytes(token_id))
        if self.library.is_stopped() and token_id in self.grammar.tokens.end_ids:
            return True
        return self.library.consume_token(token_id) or self._fail(_one_line(self.library.get_error()))

    def settle(self, mask: Mask) -> None:
        """Finish a mask of this answer, which the library has filled if it is bound, and note if that failed."""
        if self._is_free:
            mask[:] = self.grammar.tokens.all_but_the_end
        elif self.library.is_error():
            self._fail(_one_line(self.library.get_error()))
            mask[:] = -1  # it no longer matters what is chosen
        elif self._is_opening and self.grammar.opening_id is not None:
            _allow(mask, self.grammar.opening_id)

    def _pass(self, text: bytes) -> bool:
        self._tail += text
        place = self._tail.find(self._after)
        if place < 0:
            self._tail = self._tail[-len(self._after) :]
            return True
        self._is_free = False
        rest = self._tail[place + len(self._after) :].lstrip()  # of a token that reaches beyond `after`
        fits = not rest or self.library.consume_tokens(self.grammar.tokens.library.tokenize_bytes(rest))
        return fits or self._fail(f"the answer goes on with {rest!r} after {self._after!r}, which the grammar forbids")

    def _fail(self, why: str) -> bool:
        self.failure = why
        return False


def masks(matchers: SequenceOf[Matcher]) -> Mask:
    """[R, words]: what each of R answers of the same model may go on with. Notes in each matcher if that failed."""
    tokens = matchers[0].grammar.tokens
    mask: Mask = np.full((len(matchers), tokens.mask_words), -1, dtype=np.int32)
    bound = [(matcher.library, row) for row, matcher in enumerate(matchers) if matcher.is_bound]
    if len(bound) > 1:
        fill_next_token_bitmask_par(tokens.executor, bound, mask)
    else:
        for library, row in bound:
            fill_next_token_bitmask(library, mask, row)
    for row, matcher in enumerate(matchers):
        matcher.settle(mask[row])
    return mask


def allows_only(mask: Mask, token_ids: Iterable[int]) -> bool:
    """Whether a mask leaves no token beside these."""
    rest = mask.copy()
    for token_id in token_ids:
        rest[token_id // 32] &= ~_bit(token_id)
    return not rest.any()


class _Tokens:
    """A model's vocabulary as llguidance reads it. An id without a token is never allowed."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, end_token_ids: SequenceOf[int]) -> None:
        self.text_bytes = vocabulary.text_bytes
        self.end_ids = frozenset(end_token_ids)
        self.bytes = [vocabulary.token_bytes(token_id) for token_id in range(vocab_size)]
        special = [one for one, text in enumerate(self.bytes) if text and not vocabulary.text_bytes(one)]
        wrapped = _Wrapped(vocabulary, self.bytes, special, end_token_ids[0])
        self.library = LLTokenizer(TokenizerWrapper(wrapped), eos_token=list(end_token_ids))
        self.executor = LLExecutor()
        self.mask_words = -(-vocab_size // 32)
        self.all_but_the_end: Mask = np.full(self.mask_words, -1, dtype=np.int32)
        for token_id in end_token_ids:
            self.all_but_the_end[token_id // 32] &= ~_bit(token_id)


class _Wrapped:
    """The attributes that llguidance asks for."""

    def __init__(self, vocabulary: Vocabulary, tokens: list[bytes], special: list[int], end: int) -> None:
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = end
        self.bos_token_id = None
        self._vocabulary = vocabulary

    def __call__(self, text: str) -> list[int]:
        return self._vocabulary.encode(text, add_special_tokens=False)


def _library_grammar(spec: GrammarSpec) -> str:
    """The specification in llguidance's own form. Raises GrammarError."""
    size = len(spec.text.encode())
    if size > MAX_TEXT_BYTES:
        raise GrammarError(f"it has {size} bytes: the limit is {MAX_TEXT_BYTES}")
    if spec.kind == "regex":
        return LLMatcher.grammar_from_regex(spec.text)
    if spec.kind == "lark":
        return LLMatcher.grammar_from_lark(spec.text)
    schema = '{"type": "object"}' if spec.kind == "json_object" else spec.text
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _WHITESPACE})
    except ValueError as error:
        raise GrammarError(_one_line(str(error))) from None


def _limits() -> LLParserLimits:
    """What one grammar may cost. Beyond llguidance's defaults in speed, far below them in size and memory.

    Measured with a byte vocabulary on one core: 20,000 symbols take at most half a second to build, and 20,000 lexer
    states (1 to 2 KB each) at most 40 MB.
    """
    return LLParserLimits(max_grammar_size=20_000, max_lexer_states=20_000, verbose_errors=False)


def _opening_id(spec: GrammarSpec, tokens: _Tokens) -> int | None:
    if spec.opening is None:
        return None
    if spec.after is None or spec.opening.encode() not in tokens.bytes:
        raise GrammarError(f"its opening {spec.opening!r} is no token of the model, or nothing ends it")
    return tokens.bytes.index(spec.opening.encode())


def _one_line(message: str) -> str:
    """The first lines of a message as one, without llguidance's drawing of the place, cut short."""
    text = " ".join(part for part in (line.strip(" |^") for line in message.splitlines()) if part)
    text = text.removesuffix("<non-verbose/>").rstrip()
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _bit(token_id: int) -> np.int32:
    return np.uint32(1 << token_id % 32).view(np.int32)


def _allow(mask: Mask, token_id: int) -> None:
    mask[token_id // 32] |= _bit(token_id)
