"""What a simulated model says: words, deterministic, and within a grammar where the request has one.

Owns the vocabulary (bytes, M3's special tokens, some words) and the choice of the next token. It is made of nothing but
the sequence itself and its seed. Bound by a grammar, it says words where they are allowed, and ends as soon as it may:
so a schema is answered by something short that validates.
"""

import math
import struct
import zlib
from collections import Counter

import numpy as np

from m3_worker.byte_vocabulary import BYTES, M3_TOKENS
from m3_worker.grammar import Matcher, masks
from m3_worker.scheduling.request import SampledToken, Sequence

_VOCABULARY = (
    "a answer any block cache chosen context each every expert first from group head is key large last layer long "
    "model new of one page past prompt query router same score short small sparse step that the then to token top "
    "value where with worker"
)
WORDS = tuple(f" {word}" for word in _VOCABULARY.split())
ADDED_TOKENS = (*M3_TOKENS, *((word, False) for word in WORDS))
VOCAB_SIZE = BYTES + len(ADDED_TOKENS)
EMBEDDING_SIZE = 64

_IDS = {text: BYTES + number for number, (text, _) in enumerate(ADDED_TOKENS)}
END_OF_TURN = _IDS["[e~["]
_THINKING = _IDS["<mm:think>"]
_DONE_THINKING = _IDS["</mm:think>"]
_NAMESPACE = _IDS["]<]minimax[>["]
_NEWLINE = ord("\n")
_FIRST_WORD = _IDS[WORDS[0]]
_ENDINGS = (END_OF_TURN, *b'"}]/,:')
"""What brings an answer to its end, the sooner the earlier it stands here."""
_LOGPROB = -0.5


def say(sequence: Sequence, answer_tokens: int) -> SampledToken:
    """The next token of a sequence whose answer is to have about `answer_tokens`; a pooled one gets its vector."""
    sampling = sequence.request.sampling
    if sequence.request.pooling is not None:
        return SampledToken(sequence.token_ids[-1], embedding=_embedding(sequence))
    if sequence.matcher is None:
        token_id = _next_token(sequence, answer_tokens)
    else:
        token_id = _bound_token(sequence, sequence.matcher, answer_tokens)
        sequence.matcher.accept(token_id)
        if sequence.matcher.failure is not None:
            return SampledToken(token_id, failure=sequence.matcher.failure)
    if sampling.logprobs is None:
        return SampledToken(token_id)
    best = tuple((_FIRST_WORD + rank, _LOGPROB - rank) for rank in range(sampling.logprobs))
    return SampledToken(token_id, _LOGPROB, best)


def _next_token(sequence: Sequence, answer_tokens: int) -> int:
    """A word; the end of thinking after a quarter of the answer, if it began with thinking; the end in the end."""
    sampling, generated = sequence.request.sampling, sequence.generated_tokens
    if _thinks(sequence) and generated == answer_tokens // 4:
        return _DONE_THINKING
    if END_OF_TURN in sampling.stop_token_ids and generated >= max(answer_tokens, sampling.min_tokens):
        return END_OF_TURN
    return _FIRST_WORD + _chance(sequence) % len(WORDS)


def _bound_token(sequence: Sequence, matcher: Matcher, answer_tokens: int) -> int:
    """What the grammar allows: a word three times of four, else what ends the answer, else anything."""
    if not matcher.is_bound:  # it thinks, and may not end before it has done so
        is_done = sequence.generated_tokens >= answer_tokens // 4
        return _DONE_THINKING if is_done else _FIRST_WORD + _chance(sequence) % len(WORDS)
    bits = np.unpackbits(masks([matcher])[0].view(np.uint8), bitorder="little")[:VOCAB_SIZE]
    chance = _chance(sequence)
    words = np.flatnonzero(bits[_FIRST_WORD:])
    if len(words) and chance % 4 and sequence.generated_tokens < answer_tokens:
        return _FIRST_WORD + int(words[chance % len(words)])
    if bits[_NAMESPACE] and bits[_NEWLINE]:  # free text that is no JSON string: a tag ends it
        return _NAMESPACE
    ending = next((token_id for token_id in _ENDINGS if bits[token_id]), None)
    if ending is not None:
        return int(ending)
    allowed = np.flatnonzero(bits)
    allowed = allowed[allowed != _THINKING] if len(allowed) > 1 else allowed
    return int(allowed[chance % len(allowed)])


def _thinks(sequence: Sequence) -> bool:
    return sequence.token_ids[sequence.prompt_tokens - 1] == _THINKING


def _chance(sequence: Sequence) -> int:
    """A number that depends on where the sequence is, on its last token and its seed."""
    seed = sequence.request.sampling.seed or 0
    before = struct.pack("<4q", sequence.prompt_tokens, sequence.generated_tokens, sequence.token_ids[-1], seed)
    return zlib.crc32(before)


def _embedding(sequence: Sequence) -> tuple[float, ...]:
    """How often each token occurs in the prompt, folded and normalised; of the last token alone if that is asked."""
    tokens = sequence.token_ids[-1:] if sequence.request.pooling == "last" else sequence.token_ids
    counts = Counter(token_id % EMBEDDING_SIZE for token_id in tokens)
    length = math.hypot(*counts.values())
    return tuple(counts[place] / length for place in range(EMBEDDING_SIZE))
