"""The tokenizer of the tiny M3: byte-level BPE learned from its corpus, with M3's special tokens behind it."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from m3_worker.byte_vocabulary import M3_TOKENS

VOCAB_SIZE = 2048
BPE_SIZE = VOCAB_SIZE - len(M3_TOKENS)


def train(texts: Iterable[str]) -> Tokenizer:
    """Learn BPE_SIZE tokens, bytes among them, and add the special ones. The same texts give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=BPE_SIZE, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != BPE_SIZE:
        raise ValueError(f"the corpus gives {tokenizer.get_vocab_size()} tokens: {BPE_SIZE} are needed")
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in M3_TOKENS])
    return tokenizer
