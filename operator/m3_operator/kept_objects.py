"""Objects kept as JSON text: a tenth of the memory that they take as dictionaries, and microseconds to read again.

A cluster of a thousand deployments has ten thousand objects, of which any one is looked at now and then.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from m3_operator.observed import Manifest

Identity = tuple[str, str, str]
"""Kind, namespace, name."""


class KeptObjects:
    """Manifests by identity. Each reading gives a new value, which nobody else has."""

    def __init__(self) -> None:
        self._texts: dict[Identity, bytes] = {}

    def __contains__(self, identity: object) -> bool:
        return identity in self._texts

    def __iter__(self) -> Iterator[Identity]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, identity: Identity) -> Manifest:
        found: Mapping[str, Any] = json.loads(self._texts[identity])
        return found

    def __setitem__(self, identity: Identity, manifest: Manifest) -> None:
        self._texts[identity] = json.dumps(manifest, separators=(",", ":")).encode()

    def __delitem__(self, identity: Identity) -> None:
        del self._texts[identity]

    def get(self, identity: Identity, default: Manifest | None = None) -> Manifest | None:
        """The object of this identity, if it is kept."""
        return self[identity] if identity in self._texts else default
