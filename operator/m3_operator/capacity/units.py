"""Bytes and tokens as people read them."""


def size(count: int) -> str:
    """Bytes in GiB, smaller ones in MiB, with one decimal: 113.0 GiB."""
    if count == 0:
        return "0 GiB"
    unit, name = (2**30, "GiB") if abs(count) >= 2**30 else (2**20, "MiB")
    return f"{count / unit:,.1f} {name}"


def tokens(count: int) -> str:
    """A count of tokens: 1,048,576 tokens."""
    return f"{count:,} token{'' if count == 1 else 's'}"


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 GPU, 8 GPUs."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
