"""The checkpoint's own chat template: from checked messages to the text of a prompt.

Owns the environment it runs in, which is that of the library these templates are written for: sandboxed, blocks
trimmed, `tojson` that keeps key order and non-ASCII text, `raise_exception`, `strftime_now`. A variable that the
template does not read is refused, because it would be dropped in silence.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from m3_worker.chat.conversation import THINKING_MODES, ChatError
from m3_worker.model.config import CheckpointError, read_json

_OURS = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})


class ChatTemplate:
    """One compiled template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """special_tokens: what `bos_token` and `eos_token` stand for. Raises jinja2.TemplateError."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens or {})
        self.variables = (
            frozenset(meta.find_undeclared_variables(environment.parse(source)))
            - _OURS
            - {
                "raise_exception",
                "strftime_now",
            }
        )

    @classmethod
    def load(cls, directory: Path) -> "ChatTemplate | None":
        """Read `chat_template.jinja`, else the template in `tokenizer_config.json`; None if there is neither.

        Raises CheckpointError, one line.
        """
        config_path, path = directory / "tokenizer_config.json", directory / "chat_template.jinja"
        config = read_json(config_path) if config_path.exists() else {}
        source = path.read_text(encoding="utf-8") if path.exists() else config.get("chat_template")
        if source is None:
            return None
        if not isinstance(source, str):
            raise CheckpointError(f"{config_path}: chat_template must be one template, not {type(source).__name__}")
        try:
            return cls(source, _special_tokens(config))
        except jinja2.TemplateError as error:
            raise CheckpointError(f"{path if path.exists() else config_path}: chat template: {error}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The prompt for the assistant's next turn. Raises ChatError with the template's own complaint."""
        for name in variables:
            if name not in self.variables:
                raise ChatError(
                    f"chat_template_kwargs.{name}",
                    f"chat_template_kwargs.{name}: the model's chat template does not read it; "
                    f"it reads: {', '.join(sorted(self.variables)) or 'nothing'}",
                )
        mode = variables.get("thinking_mode")
        if mode is not None and mode not in THINKING_MODES:
            raise ChatError(
                "chat_template_kwargs.thinking_mode",
                f"thinking_mode is {mode!r}: must be one of {', '.join(THINKING_MODES)}",
            )
        given = {**self._special_tokens, **variables}
        try:
            return self._template.render(
                messages=messages, tools=list(tools) or None, add_generation_prompt=True, **given
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, RecursionError) as error:
            raise ChatError("messages", f"the model's chat template refuses the messages: {error}") from None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and `eos_token`, which are strings or objects with the string in `content`."""
    found = {}
    for name in ("bos_token", "eos_token"):
        token = config.get(name)
        text = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(text, str):
            found[name] = text
    return found


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
