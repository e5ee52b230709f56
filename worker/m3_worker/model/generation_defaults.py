"""How tokens are chosen when a request does not say: the checkpoint's `generation_config.json`, read and checked."""

from dataclasses import dataclass
from pathlib import Path

from m3_worker.model.config_fields import CheckpointError, Json, read_json


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """MiniMax-M3 says temperature 1.0, top_p 0.95, top_k 40; without a file, nothing is limited."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @classmethod
    def load(cls, directory: Path) -> "GenerationDefaults":
        """Read the file if there is one. Raises CheckpointError with file, field, value and rule."""
        path = directory / "generation_config.json"
        if not path.exists():
            return cls()
        try:
            return cls._of(read_json(path))
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from None

    @classmethod
    def _of(cls, config: Json) -> "GenerationDefaults":
        temperature = _number(config, "temperature", 1.0, 2)
        return cls(
            temperature=temperature if config.get("do_sample", True) else 0.0,
            top_p=_number(config, "top_p", 1.0, 1),
            top_k=int(_number(config, "top_k", 0, 2**31)),
        )


def _number(config: Json, name: str, default: float, highest: float) -> float:
    value = config.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= highest:
        raise ValueError(f"{name} is {value!r}: must be a number from 0 to {highest}")
    return value
