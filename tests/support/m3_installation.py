"""The chart installed on the real cluster, in a namespace of its own, and what a test does with it as a user would."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import openai
import yaml

from m3_testcluster.cluster import KubectlError
from m3_testcluster.environment import PYTHONPATH, environment_mount, environment_volume
from m3_testcluster.real import RealCluster

ROOT = Path(__file__).parents[2]
HELM = Path(sys.executable).with_name("helm")
RELEASE = "m3serve"
NAME = "tiny"
MODEL = "MiniMax-M3"
# What other controllers make and take away at times of their own.
CHANGING_BY_ITSELF = {"events", "events.events.k8s.io", "leases.coordination.k8s.io"}


@dataclass(frozen=True)
class Installation:
    """The chart, installed in a namespace of its own."""

    cluster: RealCluster
    namespace: str

    def helm(self, *arguments: str) -> str:
        done = subprocess.run(
            [HELM, f"--kubeconfig={self.cluster.kubeconfig}", f"--namespace={self.namespace}", *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"helm {arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl(*arguments, f"--namespace={self.namespace}", stdin=stdin, timeout_seconds=300)

    def get(self, *arguments: str) -> dict[str, Any]:
        return self.cluster.get(*arguments, f"--namespace={self.namespace}")

    def status(self) -> dict[str, Any]:
        return self.get("m3deployment", NAME)["status"]

    def route(self, **spec: Any) -> None:
        """Set these fields of the example's router, and return when all its pods have them."""
        self.kubectl("patch", f"m3r/{NAME}", "--type=merge", f"--patch={json.dumps({'spec': spec})}")
        self.kubectl("wait", "--for=condition=Ready", f"m3r/{NAME}", "--timeout=60s")
        self.kubectl("rollout", "status", f"deployment/{NAME}-router", "--timeout=120s")

    def await_ready(self, replicas: int) -> None:
        """Wait until this many groups serve what was applied last, and nothing is on its way."""
        try:
            self.kubectl("wait", "--for=condition=Ready", f"m3d/{NAME}", "--timeout=180s")
            self.kubectl(
                "wait", f"--for=jsonpath={{.status.readyReplicas}}={replicas}", f"m3d/{NAME}", "--timeout=180s"
            )
            self.kubectl("wait", "--for=condition=Progressing=False", f"m3d/{NAME}", "--timeout=180s")
            self.kubectl("wait", "--for=condition=Ready", f"m3r/{NAME}", "--timeout=180s")
        except KubectlError as error:
            error.add_note(self.kubectl("describe", "pods"))
            for pod in self.kubectl("get", "pods", "--output=name").split():
                error.add_note(f"{pod}:\n{self.kubectl('logs', pod, '--all-containers', '--tail=20')}")
            raise

    def client(self) -> openai.OpenAI:
        secret = self.get("secret", f"{NAME}-keys")
        key = base64.b64decode(secret["data"]["api-key"]).decode()
        url = self.cluster.service_url(self.namespace, f"{NAME}-router")
        return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)

    def objects(self) -> set[str]:
        """`resource/name` of everything in the namespace."""
        listed = self.cluster.kubectl("api-resources", "--namespaced", "--verbs=list", "--output=name").split()
        resources = ",".join(sorted(set(listed) - CHANGING_BY_ITSELF))
        return set(self.kubectl("get", resources, "--output=name", "--ignore-not-found").split())

    def deploy(self, **spec: Any) -> None:
        """Apply the packaged example with these fields of its spec.

        torch is too large for a test's image: pods mount this environment's.
        """
        example = yaml.safe_load(files("m3_operator").joinpath("examples/tiny.yaml").read_text())
        example["spec"]["engine"]["env"] = [PYTHONPATH]
        example["spec"]["template"] = {"volumes": [environment_volume()], "volumeMounts": [environment_mount()]}
        for name, value in spec.items():
            before = example["spec"].get(name)
            example["spec"][name] = {**before, **value} if isinstance(before, dict) else value
        self.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=yaml.safe_dump(example))


@contextmanager
def installed(cluster: RealCluster, images: Mapping[str, str], namespace: str, *values: str) -> Iterator[Installation]:
    """The chart with these images and further `--set` values; the namespace goes with the block."""
    cluster.create_namespace(namespace)
    installation = Installation(cluster, namespace)
    arguments = [
        argument
        for part, image in images.items()
        for repository, tag in [image.rsplit(":", 1)]
        for argument in ("--set", f"{part}.image.repository={repository}", "--set", f"{part}.image.tag={tag}")
    ]
    settings = [f"--set={value}" for value in values]
    chart = str(ROOT / "charts/m3serve")
    installation.helm("install", RELEASE, chart, "--wait", "--timeout=180s", *settings, *arguments)
    yield installation
    cluster.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--wait=false")
