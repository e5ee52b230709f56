"""The resources in a YAML file, read as strictly as `kubectl apply` against our CRDs would.

Owns the way from text to `Documents`: which kinds a file may hold, and that every object in it is well formed and
named once. What an object may say is `api`'s business; how the objects fit together is the business of whoever runs
them.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from m3_operator.api import M3Deployment, M3Router, SpecError, parse_deployment, parse_router
from m3_operator.errors import OperatorError
from m3_operator.names import API_VERSION, DEPLOYMENT_KIND, ROUTER_KIND


class DocumentError(OperatorError):
    """A file that cannot be used; the message is one line naming the file, the document, the field and the rule."""


@dataclass(frozen=True)
class Documents:
    """What one file says, in its order; all objects are of one namespace, and names are unique within a kind."""

    deployments: tuple[M3Deployment, ...]
    routers: tuple[M3Router, ...]


def read_documents(path: Path) -> Documents:
    """Read a file of M3Deployments and M3Routers. Raises DocumentError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DocumentError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DocumentError(f"{path}: not UTF-8 text") from None
    return parse_documents(text, source=str(path))


def parse_documents(text: str, *, source: str) -> Documents:
    """Parse the YAML documents in `text`; `source` names them in messages. Raises DocumentError."""
    deployments: dict[str, M3Deployment] = {}
    routers: dict[str, M3Router] = {}
    for where, manifest in _manifests(text, source):
        try:
            if manifest["kind"] == DEPLOYMENT_KIND:
                _add(deployments, parse_deployment(manifest, strict=True), where)
            else:
                _add(routers, parse_router(manifest, strict=True), where)
        except SpecError as error:
            raise DocumentError(f"{where}: {error}") from None
    if not deployments:
        raise DocumentError(f"{source}: holds no {DEPLOYMENT_KIND}")
    namespaces = {found.metadata.namespace for found in deployments.values()}
    namespaces |= {found.metadata.namespace for found in routers.values()}
    if len(namespaces) > 1:
        raise DocumentError(f"{source}: objects of one namespace only; it has {', '.join(sorted(namespaces))}")
    return Documents(tuple(deployments.values()), tuple(routers.values()))


def _manifests(text: str, source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every document that is not empty, with the words that name it in a message."""
    try:
        loaded = list(yaml.load_all(text, Loader=_StrictLoader))
    except yaml.YAMLError as error:
        raise DocumentError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    for number, document in enumerate(loaded, start=1):
        if document is None:
            continue
        where = f"{source}: document {number}"
        if not isinstance(document, dict):
            raise DocumentError(f"{where}: not an object but {type(document).__name__}")
        kind, version = document.get("kind"), document.get("apiVersion")
        if version != API_VERSION or kind not in (DEPLOYMENT_KIND, ROUTER_KIND):
            raise DocumentError(
                f"{where}: {version} {kind} is not supported: only {DEPLOYMENT_KIND} and {ROUTER_KIND} of {API_VERSION}"
            )
        metadata = document.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        yield f"{where}, {kind} {name}", document


_Kind = TypeVar("_Kind", M3Deployment, M3Router)


def _add(known: dict[str, _Kind], found: _Kind, where: str) -> None:
    if found.metadata.name in known:
        raise DocumentError(f"{where}: the file has two of this name")
    known[found.metadata.name] = found


class _StrictLoader(yaml.SafeLoader):
    """YAML whose mappings name a key once: of two values the second would win, and nobody would know."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
