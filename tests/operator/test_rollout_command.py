"""`m3 rollout` against an API server in memory: what is said, what is written into the spec, and what is refused."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from m3_operator.api import parse_deployment
from m3_operator.errors import ConflictError, NotFoundError
from m3_operator.render.revisions import Template, controller_revision
from m3_operator.render.worker import revision
from m3_operator.rollout_actions import Rollout, RolloutError, standing_of

MODEL = {"name": "M", "source": {"tiny": {}}}


def merged(target: object, patch: object) -> object:
    """RFC 7386, section 2, word by word."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


@dataclass
class Server:
    """One M3Deployment and its revisions; statuses come in the order given."""

    deployment: dict[str, Any]
    revisions: list[dict[str, Any]] = field(default_factory=list)
    statuses: list[dict[str, Any]] = field(default_factory=list)
    managers: list[str] = field(default_factory=list)

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        if (kind, namespace, name) != ("M3Deployment", "ns", "m3"):
            raise NotFoundError(404, "no such thing")
        if self.statuses:
            self.deployment["status"] = self.statuses.pop(0)
        return copy.deepcopy(self.deployment)

    async def list(self, kind: str, namespace: str | None, selector: str = "") -> list[dict[str, Any]]:
        assert (kind, namespace, selector) == ("ControllerRevision", "ns", "serving.m3.dev/deployment=m3")
        return list(reversed(self.revisions))

    async def merge(
        self, kind: str, namespace: str, name: str, patch: Mapping[str, Any], *, manager: str
    ) -> dict[str, Any]:
        if patch["metadata"]["resourceVersion"] != self.deployment["metadata"]["resourceVersion"]:
            raise ConflictError(409, "changed")
        self.managers.append(manager)
        found = merged(self.deployment, patch)
        assert isinstance(found, dict)
        self.deployment = found
        return found


@dataclass
class Console:
    """What was printed; time passes only while the command sleeps."""

    server: Server
    lines: list[str] = field(default_factory=list)
    now: float = 0.0

    @property
    def rollout(self) -> Rollout:
        return Rollout(
            objects=self.server,
            namespace="ns",
            name="m3",
            say=self.lines.append,
            sleep=self.sleep,
            clock=lambda: self.now,
        )

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def manifest(spec: dict[str, Any], **status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": "m3", "namespace": "ns", "uid": "u", "generation": 2, "resourceVersion": "7"},
        "spec": {"model": MODEL, **spec},
        "status": status,
    }


def revised(*specs: tuple[dict[str, Any], str]) -> tuple[Server, list[str]]:
    """A deployment that went through these specs and operator's images, the last of which it asks for."""
    kept, revisions = [], []
    for number, (spec, image) in enumerate(specs, 1):
        deployment = parse_deployment(manifest(spec), strict=True)
        resolved = deployment.spec.engine.image or image
        revisions.append(revision(deployment, resolved))
        kept.append(controller_revision(Template(deployment, resolved), revisions[-1], number))
    status = {"observedGeneration": 2, "updateRevision": revisions[-1], "currentRevision": revisions[-1]}
    return Server(manifest(specs[-1][0], **status), kept), revisions


def told(
    reason: str, message: str = "so it is", *, generation: int = 2, rolled_back: bool = False, **status: Any
) -> dict[str, Any]:
    progressing = {"type": "Progressing", "status": "True", "reason": reason, "message": message}
    back = [{"type": "RolledBack", "status": "True", "reason": "X", "message": "gone back"}] if rolled_back else []
    return {"observedGeneration": generation, "conditions": [progressing, *back], **status}


async def test_status_waits_says_every_change_once_and_ends_with_the_new_revision() -> None:
    server = Server(
        manifest({}),
        statuses=[
            told("Settled", generation=1, updateRevision="a", currentRevision="a"),
            told("RollingOut", "0 of 2", updateRevision="b", currentRevision="a"),
            told("RollingOut", "0 of 2", updateRevision="b", currentRevision="a"),
            told("RollingOut", "1 of 2", updateRevision="b", currentRevision="a"),
            told("Recovering", updateRevision="b", currentRevision="b"),
        ],
    )
    console = Console(server)
    await console.rollout.wait()
    assert console.lines == [
        "the operator has not seen the last change yet",
        "0 of 2",
        "1 of 2",
        "revision b is rolled out",
    ]


@pytest.mark.parametrize(
    "status",
    [
        told("ProgressDeadlineExceeded", "no progress for 60 s"),
        told("Refused", "no group is made"),
        told("ImageMissing", "set an image"),
        told("RolledBack", rolled_back=True, updateRevision="a", currentRevision="a"),
    ],
    ids=["stuck", "refused", "no image", "rolled back"],
)
async def test_status_fails_where_the_new_revision_does(status: dict[str, Any]) -> None:
    console = Console(Server(manifest({}), statuses=[status]))
    with pytest.raises(RolloutError):
        await console.rollout.wait()
    assert console.lines == []


async def test_status_gives_up_in_time() -> None:
    console = Console(Server(manifest({}, **told("Paused"))))
    with pytest.raises(RolloutError, match="not done after 5 s: so it is"):
        await console.rollout.wait(timeout_seconds=5)
    assert console.now == 6


def test_a_partition_is_done_when_the_operator_has_nothing_left_to_do() -> None:
    standing = standing_of(manifest({}, **told("Settled", "1 stays", updateRevision="b", currentRevision="a")))
    assert (standing.is_done, standing.line) == (True, "revision b is rolled out: 1 stays")


async def test_history_shows_numbers_images_and_what_runs() -> None:
    server, (first, second) = revised(({}, "i:1"), ({}, "i:2"))
    server.deployment["status"]["currentRevision"] = first
    console = Console(server)
    await console.rollout.history()
    rows = [re.split(r"\s{2,}", line) for line in console.lines]
    assert rows == [
        ["NUMBER", "REVISION", "CREATED", "STATE", "IMAGE"],
        ["1", first, "current", "i:1"],
        ["2", second, "update", "i:2"],
    ]


BEFORE = {"engine": {"image": "i:1", "maxConcurrent": 7}, "template": {"nodeSelector": {"a": "b"}}}
AFTER = {
    "engine": {"image": "i:2", "args": ["--x"]},
    "template": {"nodeSelector": {"c": "d"}},
    "model": {"name": "M", "source": {"hostPath": {"path": "/m"}}},
    "parallelism": {"nodes": 2},
}


async def test_undo_brings_back_what_was_and_removes_what_came_and_leaves_the_rest_alone() -> None:
    server, (first, _) = revised((BEFORE, ""), (AFTER, ""))
    # As it lies in the cluster: defaults filled in, and what no revision is about.
    defaulted = {"maxConcurrent": 64, "port": 8000, **AFTER["engine"]}
    unrelated = {"replicas": 5, "rollout": {"partition": 1}, "recovery": {"maxRestarts": 9}}
    server.deployment["spec"] |= {"engine": defaulted, **unrelated}
    console = Console(server)
    await console.rollout.undo(None)
    spec = parse_deployment(server.deployment, strict=True).spec
    assert revision(parse_deployment(server.deployment, strict=True), "i:1") == first
    assert (spec.replicas, spec.rollout.partition, spec.recovery.max_restarts) == (5, 1, 9)
    assert server.deployment["spec"]["model"] == MODEL
    assert "parallelism" not in server.deployment["spec"]
    assert server.managers == ["m3-cli"]
    assert console.lines == [f"M3Deployment m3: rolled back to number 1, {first}"]


async def test_undo_goes_to_the_last_that_was_rolled_out_or_to_the_number_that_is_named() -> None:
    specs = [({"engine": {"maxConcurrent": value}}, "i") for value in (1, 2, 3)]
    server, revisions = revised(*specs)
    await Console(server).rollout.undo(None)
    assert server.deployment["spec"]["engine"]["maxConcurrent"] == 2
    server, revisions = revised(*specs)
    server.deployment["status"]["currentRevision"] = revisions[0]  # the third never came up, the second neither
    await Console(server).rollout.undo(None)
    assert server.deployment["spec"]["engine"]["maxConcurrent"] == 1
    server, revisions = revised(*specs)
    await Console(server).rollout.undo(1)
    assert server.deployment["spec"]["engine"]["maxConcurrent"] == 1


async def test_undo_leaves_the_revision_that_was_given_up_though_the_groups_are_back_already() -> None:
    server, (first, second) = revised(({}, "i"), ({"engine": {"maxConcurrent": 7}}, "i"))
    server.deployment["status"] |= {"updateRevision": first, "currentRevision": first, "rollout": {"revision": second}}
    await Console(server).rollout.undo(None)
    assert revision(parse_deployment(server.deployment, strict=True), "i") == first


async def test_undo_names_the_operators_image_of_that_time() -> None:
    server, _ = revised(({}, "i:1"), ({}, "i:2"))
    console = Console(server)
    await console.rollout.undo(None)
    assert server.deployment["spec"]["engine"] == {"image": "i:1"}
    assert console.lines[0] == "spec.engine.image is set to i:1, the operator's image of that time"


@pytest.mark.parametrize(
    ("number", "words"),
    [(9, "there is no revision 9; kept are 1, 2"), (2, "revision 2 is what the spec asks for already")],
)
async def test_undo_refuses_what_cannot_be(number: int, words: str) -> None:
    server, _ = revised(({}, "i:1"), ({}, "i:2"))
    with pytest.raises(RolloutError, match=words):
        await Console(server).rollout.undo(number)
    assert server.managers == []


async def test_undo_needs_a_revision_and_an_operator_that_has_seen_the_spec() -> None:
    alone, _ = revised(({}, "i"))
    with pytest.raises(RolloutError, match="no earlier revision"):
        await Console(alone).rollout.undo(None)
    unseen, _ = revised(({}, "i:1"), ({}, "i:2"))
    unseen.deployment["metadata"]["generation"] = 3
    with pytest.raises(RolloutError, match="has not seen the last change"):
        await Console(unseen).rollout.undo(None)


async def test_a_change_by_somebody_else_is_not_overwritten() -> None:
    class Busy(Server):
        async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
            found = await super().get(kind, namespace, name)
            self.deployment["metadata"]["resourceVersion"] = "8"
            return found

    with pytest.raises(RolloutError, match="was changed meanwhile"):
        await Console(Busy(manifest({}))).rollout.set_paused(is_paused=True)


async def test_pause_and_resume_set_one_field_and_say_when_there_is_nothing_to_set() -> None:
    server = Server(manifest({"rollout": {"partition": 1}}))
    console = Console(server)
    await console.rollout.set_paused(is_paused=True)
    assert server.deployment["spec"]["rollout"] == {"partition": 1, "paused": True}
    with pytest.raises(RolloutError, match="m3 is paused already"):
        await console.rollout.set_paused(is_paused=True)
    await console.rollout.set_paused(is_paused=False)
    assert server.deployment["spec"]["rollout"] == {"partition": 1, "paused": False}
    assert console.lines == ["M3Deployment m3: paused", "M3Deployment m3: resumed"]


async def test_restart_asks_for_another_revision_with_the_same_words_for_the_worker() -> None:
    server, (first,) = revised(({"template": {"annotations": {"a": "b"}}}, "i"))
    console = Console(server)
    await console.rollout.restart()
    restarted = parse_deployment(server.deployment, strict=True)
    assert revision(restarted, "i") != first
    annotations = restarted.spec.template.annotations
    assert set(annotations) == {"a", "serving.m3.dev/restarted-at"}
    await console.rollout.set_paused(is_paused=True)
    with pytest.raises(RolloutError, match="m3 rollout resume m3 first"):
        await console.rollout.restart()


async def test_a_deployment_that_is_not_there_is_named() -> None:
    nowhere = Rollout(objects=Server(manifest({})), namespace="other", name="m3", say=print)
    with pytest.raises(RolloutError, match="no M3Deployment m3 in namespace other"):
        await nowhere.history()
