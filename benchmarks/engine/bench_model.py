"""The tiny model that all engines load: M3's real block geometry (128 tokens x 16 blocks), random weights in fp32."""

from pathlib import Path


def write_model(directory: Path, context_tokens: int) -> int:
    """The tiny model that all engines load. Returns its bytes."""
    from m3_worker.config import TinySettings
    from m3_worker.tiny import write_checkpoint

    settings = TinySettings(
        directory=directory,
        hidden=256,
        layers=4,
        heads=8,
        kv_heads=2,
        head_dim=32,
        index_dim=32,
        experts=8,
        intermediate=256,
        block=128,
        topk=16,
        context=context_tokens,
        vision=False,
    )
    return write_checkpoint(settings)
