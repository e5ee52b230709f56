"""The smallest vocabulary that says everything: the 256 bytes, then the tokens added to them.

Owns M3's special tokens, in the order of their ids in the released tokenizer, and the library's tokenizer over them.
For tiny and simulated models; a real checkpoint brings its own `tokenizer.json`.
"""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from m3_worker.tokenizer import byte_characters

BYTES = 256

# Those marked False are ordinary text to a decoder: parsers of thinking and tool calls read them.
M3_TOKENS = (
    ("]~b]", True),  # start of a turn
    ("[e~[", True),  # end of a turn
    ("]!d~[", True),
    ("]<]image[>[", True),
    ("]<]video[>[", True),
    ("]<]start of image[>[", True),
    ("]<]end of image[>[", True),
    ("]<]start of video[>[", True),
    ("]<]end of video[>[", True),
    ("]<]vision pad[>[", True),
    ("]~!b[", True),  # start of a conversation
    ("<mm:think>", False),
    ("</mm:think>", False),
    ("]<]minimax[>[", False),  # before every tag of a tool call
)


def byte_level_tokenizer(added: Iterable[tuple[str, bool]]) -> Tokenizer:
    """One token per byte, with the byte's value as its id, then `added`: text, and whether it is special.

    Any ids decode to text that encodes to some ids of the same text.
    """
    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in added])
    return tokenizer
