"""The tokenizer: bytes of tokens, and text from tokens one by one, against the library's own decoder."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from m3_fakes.worker import CLOSING, END_OF_TURN, OPENING, byte_tokenizer
from m3_worker.model.config import CheckpointError
from m3_worker.tokenizer import Detokenizer, Tokenizer

TEXT = "Grüße, 世界! 🙂 naïve — fin"


def trained() -> tokenizers.Tokenizer:
    """A small byte-level BPE whose tokens cut characters in two."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["[e~["], show_progress=False
    )
    library.train_from_iterator([TEXT] * 5, trainer)
    library.add_tokens(["<mm:think>"])
    return library


@given(st.lists(st.integers(0, 300), max_size=40))
def test_text_that_comes_token_by_token_is_what_the_library_decodes(token_ids: list[int]) -> None:
    library, tokenizer = LIBRARY, Tokenizer(LIBRARY)
    detokenizer = Detokenizer(tokenizer)
    text = "".join(map(detokenizer.push, token_ids)) + detokenizer.finish()
    assert text == tokenizer.decode(token_ids) == library.decode(token_ids, skip_special_tokens=True)


LIBRARY = trained()


def test_a_character_is_given_out_when_its_last_byte_has_come() -> None:
    tokenizer = byte_tokenizer()
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(byte) for byte in "é🙂".encode()]
    assert pieces == ["", "é", "", "", "", "🙂"]
    assert detokenizer.finish() == ""


def test_a_character_that_is_cut_off_becomes_a_replacement_at_the_end() -> None:
    detokenizer = Detokenizer(byte_tokenizer())
    assert detokenizer.push("é".encode()[0]) == ""
    assert detokenizer.finish() == "�"


def test_special_tokens_add_no_text_and_thinking_tags_do() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.decode([END_OF_TURN, OPENING, 65, CLOSING, END_OF_TURN]) == "<mm:think>A</mm:think>"
    assert tokenizer.token_text(END_OF_TURN) == "[e~["
    assert tokenizer.id_of("<mm:think>") == OPENING
    assert tokenizer.id_of("no such token") is None


def test_texts_of_added_tokens_are_encoded_as_these() -> None:
    assert byte_tokenizer().encode("a<mm:think>[e~[", add_special_tokens=False) == [97, OPENING, END_OF_TURN]


def test_an_id_without_a_token_has_no_bytes() -> None:
    assert byte_tokenizer().token_bytes(5000) == b""


def test_a_tokenizer_is_read_from_a_checkpoint(tmp_path: Path) -> None:
    LIBRARY.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode(TEXT, add_special_tokens=False)) == TEXT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "tokenizer.json: no such file"),
        ("{", "tokenizer.json: cannot be read"),
        ("[]", "tokenizer.json: cannot be read"),
        (json.dumps({"decoder": {"type": "Metaspace"}}), "tokenizer.json: cannot be read"),
    ],
)
def test_a_broken_tokenizer_is_refused_in_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=message) as refusal:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_tokenizer_that_is_not_byte_level_is_refused_by_name(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer(models.BPE())
    library.decoder = decoders.Metaspace()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="decoder is Metaspace: only ByteLevel is supported"):
        Tokenizer.load(tmp_path)
