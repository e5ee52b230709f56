"""How long a group may take to start: said, worked out from the checkpoint's size, or an hour."""

from typing import Any

import pytest

from m3_operator.api import M3Deployment, parse_deployment
from m3_operator.capacity.releases import RELEASES
from m3_operator.capacity.startup import checkpoint_bytes, startup_seconds, with_startup
from m3_operator.render import worker


def deployment(source: dict[str, Any], release: str | None = None, **spec: Any) -> M3Deployment:
    model = {"name": "MiniMax-M3", "source": source, **({"release": release} if release else {})}
    metadata = {"name": "m3", "namespace": "prod", "uid": "uid-1"}
    manifest = {"apiVersion": "serving.m3.dev/v1alpha1", "kind": "M3Deployment", "metadata": metadata}
    return parse_deployment({**manifest, "spec": {"model": model, **spec}}, strict=True)


VOLUME = {"pvc": {"claimName": "weights"}}


@pytest.mark.parametrize(
    ("release", "published_gb"), [("MiniMax-M3", 854), ("MiniMax-M3-MXFP8", 444), ("MiniMax-M3.1-Flash", 250)]
)
def test_the_bytes_of_a_release_are_those_that_were_published(release: Any, published_gb: int) -> None:
    assert checkpoint_bytes(RELEASES[release]) == pytest.approx(published_gb * 1e9, rel=0.01)


def test_a_known_release_gets_ten_minutes_and_the_time_to_read_it_at_200_mb_a_second() -> None:
    assert startup_seconds(deployment(VOLUME, "MiniMax-M3")) == pytest.approx(600 + 854e9 / 200e6, rel=0.01)
    assert startup_seconds(deployment({"tiny": {}})) == 601
    assert startup_seconds(deployment({"packaged": {}})) == 601


def test_an_unknown_checkpoint_gets_an_hour() -> None:
    assert startup_seconds(deployment(VOLUME)) == 3600


def test_what_the_spec_says_is_what_holds() -> None:
    found = deployment(VOLUME, "MiniMax-M3", probes={"startupSeconds": 42})
    assert startup_seconds(found) == 42
    assert with_startup(found) == found


def test_the_startup_probe_lasts_as_long() -> None:
    found = with_startup(deployment(VOLUME, "MiniMax-M3"))
    probe = worker.group_pods(found, 0, "rev", image="i")[0]["spec"]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == pytest.approx(4870, rel=0.01)


def test_an_hour_that_an_older_crd_wrote_into_the_object_restarts_nothing() -> None:
    written = deployment(VOLUME, probes={"startupSeconds": 3600})
    assert worker.revision(written, "i") == worker.revision(deployment(VOLUME), "i")
    assert worker.revision(written, "i") != worker.revision(deployment(VOLUME, probes={"startupSeconds": 3601}), "i")
