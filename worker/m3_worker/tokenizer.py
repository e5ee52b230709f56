"""Text to token ids and back, by the checkpoint's own `tokenizer.json`.

Owns the byte-level vocabulary: what bytes each id stands for, and text from ids that arrive one by one. Special tokens
are found by their text, no id is known here. Only byte-level tokenizers are supported, M3's kind; another is refused at
load. Stop strings are stop_strings' business, turns and thinking are chat's.
"""

import codecs
import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers

from m3_worker.model.config import CheckpointError


class Tokenizer:
    """The tokenizer of one checkpoint. Safe to use from several threads."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        self._added = {token_id: token.content.encode() for token_id, token in added.items()}
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        self.special_texts = tuple(token.content for token in added.values() if token.special)
        """What special tokens are in a text that is encoded, and never in one that is decoded."""

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        """Read `tokenizer.json`. Raises CheckpointError, one line, if it is missing, broken or not byte-level."""
        path = directory / "tokenizer.json"
        try:
            text = path.read_text(encoding="utf-8")
            decoder = json.loads(text).get("decoder")
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file; a checkpoint directory must have it") from None
        except Exception as error:  # noqa: BLE001 # tokenizers raises plain Exception
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
        if not _is_byte_level(decoder):
            kind = decoder.get("type") if isinstance(decoder, dict) else decoder
            raise CheckpointError(f"{path}: decoder is {kind}: only ByteLevel is supported")
        return cls(tokenizer)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text; the texts of added tokens in it become those tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for, special or not; none for an id without a token."""
        added = self._added.get(token_id)
        if added is not None:
            return added
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes([self._byte_of[character] for character in token])
        except KeyError:
            return str(token).encode()

    def text_bytes(self, token_id: int) -> bytes:
        """The bytes one token adds to a text: like `token_bytes`, but special tokens add none."""
        return b"" if token_id in self._special else self.token_bytes(token_id)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of some tokens, without special ones; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.text_bytes, token_ids)).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        """One token as text for people, special or not; bytes that are no UTF-8 become U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def id_of(self, token: str) -> int | None:
        """The id of a token by its text, if there is one."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id


class Detokenizer:
    """Text from token ids that arrive one by one: all pieces together are `Tokenizer.decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that is complete with this token; a character of which bytes are missing waits for them."""
        return self._decoder.decode(self._tokenizer.text_bytes(token_id))

    def finish(self) -> str:
        """U+FFFD if bytes of a character are still missing."""
        return self._decoder.decode(b"", final=True)


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's convention)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    substitutes = iter(range(256, 512))
    return [chr(byte if byte in printable else next(substitutes)) for byte in range(256)]


def _is_byte_level(decoder: object) -> bool:
    if not isinstance(decoder, dict):
        return False
    if decoder.get("type") == "Sequence":
        return all(map(_is_byte_level, decoder.get("decoders", ()))) and bool(decoder.get("decoders"))
    return decoder.get("type") == "ByteLevel"
