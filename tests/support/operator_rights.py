"""What RBAC rules allow, and what requests used: both as sets of rights that can be held against each other."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from m3_testcluster.audit import AuditEvent


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one resource (`pods`, `m3routers/status`); `name` is "" for all objects of it."""

    group: str
    resource: str
    verb: str
    name: str = ""

    def __str__(self) -> str:
        where = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.verb} {where}{f' {self.name}' if self.name else ''}"


def rights_of(rules: Iterable[Mapping[str, Any]]) -> set[Right]:
    """Everything that these rules allow."""
    return {
        Right(group, resource, verb, name)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames") or [""]
    }


def rights_needed(event: AuditEvent) -> set[Right]:
    """What a request needs: its verb, and `create` if a write of a name made the object. None for discovery."""
    if not event.resource:
        return set()
    resource = "/".join(part for part in (event.resource, event.subresource) if part)
    verbs = {event.verb, *(["create"] if event.verb in ("patch", "update") and event.code == 201 else [])}
    return {Right(event.group, resource, verb, event.name) for verb in verbs}


def used(rights: Iterable[Right], events: Iterable[AuditEvent]) -> set[Right]:
    """Those rights that some request needed."""
    needed = {right for event in events for right in rights_needed(event)}
    anybodys = {Right(right.group, right.resource, right.verb) for right in needed}
    return {right for right in rights if right in needed or right in anybodys}


def not_covered(rights: Iterable[Right], events: Iterable[AuditEvent]) -> list[str]:
    """Requests that needed a right that is not among these."""
    held = set(rights)
    return sorted(
        str(right)
        for right in {right for event in events for right in rights_needed(event)}
        if right not in held and Right(right.group, right.resource, right.verb) not in held
    )
