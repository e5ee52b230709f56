"""What the API server was asked to do, and by whom: its audit log, read back as events.

Owns the audit policy and the parsing. The log holds metadata only (no bodies), one line for each finished request.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [{"level": "Metadata"}],
}

WRITE_VERBS = frozenset({"create", "update", "patch", "delete", "deletecollection"})
# Questions asked with the verb `create`; the API server stores nothing of them.
_QUESTION_GROUPS = frozenset({"authentication.k8s.io", "authorization.k8s.io"})


@dataclass(frozen=True)
class AuditEvent:
    """One finished request. `received` is in UTC; names that the request did not have are empty strings."""

    audit_id: str
    received: datetime
    user: str
    user_agent: str
    verb: str
    group: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int
    dry_run: bool

    @property
    def is_write(self) -> bool:
        """Whether the request asked the API server to change what it stores, whatever came of it."""
        return self.verb in WRITE_VERBS and not self.dry_run and self.group not in _QUESTION_GROUPS

    def __str__(self) -> str:
        what = "/".join(part for part in (self.resource, self.subresource) if part)
        where = "/".join(part for part in (self.namespace, self.name) if part)
        return f"{self.received:%H:%M:%S.%f} {self.user} {self.verb} {what} {where} -> {self.code}"


def parse_event(record: dict[str, Any]) -> AuditEvent:
    """One record of the audit log as an AuditEvent."""
    target = record.get("objectRef", {})
    return AuditEvent(
        audit_id=record["auditID"],
        received=datetime.fromisoformat(record["requestReceivedTimestamp"]),
        user=record["user"]["username"],
        user_agent=record.get("userAgent", ""),
        verb=record["verb"],
        group=target.get("apiGroup", ""),
        resource=target.get("resource", ""),
        subresource=target.get("subresource", ""),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=record.get("responseStatus", {}).get("code", 0),
        dry_run="dryRun" in parse_qs(urlsplit(record.get("requestURI", "")).query),
    )


def read_events(log: Path) -> Iterator[AuditEvent]:
    """All events of the log in the order of their completion; a last line still being written is left out."""
    with log.open() as lines:
        for line in lines:
            if line.endswith("\n"):
                yield parse_event(json.loads(line))


def select_writes(events: Iterable[AuditEvent], user: str, since: datetime | None = None) -> list[AuditEvent]:
    """The writes of one user, received at or after `since` (with a time zone)."""
    return [e for e in events if e.user == user and e.is_write and (since is None or e.received >= since)]
