"""Two nodes that run containers: images of our own writing, Services, DNS, logs, exec, and an end without a trace."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from m3_testcluster.environment import PYTHONPATH, environment_mount, environment_volume
from m3_testcluster.image_set import PYTHON_IMAGE, write_python_image
from m3_testcluster.preflight import preflight
from m3_testcluster.real import RealCluster
from m3_testcluster.teardown import REGISTER

SUPPORT = Path(__file__).resolve().parents[1] / "support"
SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["NODE"].encode())
    def log_message(self, format, *arguments):
        print("answered", self.path, flush=True)
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


def web(image: str) -> list[dict[str, object]]:
    """Two web servers, one on each node, that answer with their node's name, and a Service over both."""
    container = {
        "name": "web",
        "image": image,
        "args": ["-c", SERVER],
        "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8000}, "periodSeconds": 1},
        "securityContext": {"runAsNonRoot": True, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False},
    }
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
    }
    template = {
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [container], "topologySpreadConstraints": [spread], "terminationGracePeriodSeconds": 1},
    }
    deployment = {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    service = {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8000}]}
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": deployment},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": service},
    ]


def one_shot(name: str, image: str, program: str) -> dict[str, Any]:
    """A pod that runs a Python program once."""
    container = {"name": "main", "image": image, "command": ["python3", "-c", program]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container], "restartPolicy": "Never", "securityContext": {"runAsNonRoot": True}},
    }


def output_of(cluster: RealCluster, namespace: str, pod: str) -> str:
    """What a one-shot pod printed, once it has succeeded."""
    where = f"--namespace={namespace}"
    ended = "--for=jsonpath={.status.containerStatuses[0].state.terminated.reason}=Completed"
    cluster.kubectl("wait", f"pod/{pod}", where, ended, "--timeout=100s")
    return cluster.kubectl("logs", pod, where).strip()


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


@pytest.fixture(scope="module")
def served(real_cluster: RealCluster, visible_report: Callable[[str], None]) -> Iterator[tuple[RealCluster, str]]:
    """The cluster, and a namespace in which `web` is ready on both nodes."""
    real_cluster.import_images([write_python_image(real_cluster.directory, visible_report)])
    namespace = "served"
    real_cluster.create_namespace(namespace)
    real_cluster.apply(web(PYTHON_IMAGE), namespace=namespace)
    real_cluster.kubectl("rollout", "status", "deployment/web", f"--namespace={namespace}", "--timeout=60s")
    yield real_cluster, namespace
    real_cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def pods_of(cluster: RealCluster, namespace: str) -> dict[str, dict[str, Any]]:
    """The pods by the name of their node."""
    return {pod["spec"]["nodeName"]: pod for pod in cluster.get("pods", f"--namespace={namespace}")["items"]}


def test_a_service_answers_this_process_from_both_nodes(served: tuple[RealCluster, str]) -> None:
    cluster, namespace = served
    url = cluster.service_url(namespace, "web")

    answered: set[str] = set()
    deadline = time.monotonic() + 20  # the node's proxy learns of a ready pod a moment after the API server
    while answered != {"node-1", "node-2"} and time.monotonic() < deadline:
        answered.add(fetch(url))
    assert answered == {"node-1", "node-2"}


def test_pods_reach_a_service_by_its_name(served: tuple[RealCluster, str]) -> None:
    cluster, namespace = served
    ask = f"import urllib.request as r; print(r.urlopen('http://web.{namespace}/', timeout=5).read().decode())"

    for pod in pods_of(cluster, namespace).values():
        answers = {cluster.exec(namespace, pod["metadata"]["name"], "python3", "-c", ask).strip() for _ in range(8)}
        assert answers <= {"node-1", "node-2"}
        assert answers


def test_logs_and_port_forward_reach_a_container(served: tuple[RealCluster, str]) -> None:
    cluster, namespace = served
    pod = pods_of(cluster, namespace)["node-2"]["metadata"]["name"]

    with cluster.port_forward(namespace, f"pod/{pod}", 8000) as url:
        assert fetch(f"{url}/forwarded") == "node-2"
    assert "answered /forwarded" in cluster.kubectl("logs", pod, f"--namespace={namespace}")


def test_project_images_have_their_commands_and_no_heavy_packages(
    real_cluster: RealCluster, namespace: str, project_images: dict[str, str]
) -> None:
    probe = (
        "import importlib.util, shutil, sys; "
        "print(all(map(shutil.which, ['m3', 'm3-operator', 'm3-router', 'm3-worker'])), "
        "[m for m in ('m3_worker', 'pydantic', 'torch') if importlib.util.find_spec(m)])"
    )
    for part, image in project_images.items():
        real_cluster.apply(one_shot(part, image, probe), namespace=namespace)
    for part in project_images:
        assert output_of(real_cluster, namespace, part) == "True ['m3_worker', 'pydantic']"


def test_a_pod_computes_with_the_packages_of_the_test_environment(
    real_cluster: RealCluster, namespace: str, project_images: dict[str, str]
) -> None:
    pod = one_shot(
        "compute", project_images["worker"], "import torch; print(int((torch.ones(2, 3) @ torch.ones(3)).sum()))"
    )
    spec: dict[str, Any] = pod["spec"]
    spec["volumes"] = [environment_volume()]
    spec["containers"][0] |= {"volumeMounts": [environment_mount()], "env": [PYTHONPATH]}
    real_cluster.apply(pod, namespace=namespace)

    assert output_of(real_cluster, namespace, "compute") == "6"


def test_a_killed_container_process_is_started_again(served: tuple[RealCluster, str]) -> None:
    cluster, namespace = served
    pod = pods_of(cluster, namespace)["node-1"]["metadata"]["name"]
    before = cluster.container_pid(namespace, pod)

    cluster.kill_container_process(namespace, pod)
    cluster.kubectl(
        "wait", f"pod/{pod}", f"--namespace={namespace}", "--timeout=60s",
        "--for=jsonpath={.status.containerStatuses[0].restartCount}=1",
    )  # fmt: skip
    cluster.kubectl("wait", f"pod/{pod}", f"--namespace={namespace}", "--timeout=60s", "--for=condition=Ready")

    assert not Path(f"/proc/{before}").exists()
    assert Path(f"/proc/{cluster.container_pid(namespace, pod)}").exists()


@pytest.mark.real_cluster
@pytest.mark.xdist_group("real_cluster")
def test_a_cluster_whose_owner_is_killed_vanishes_by_itself() -> None:
    """A second cluster beside the first, so it also shows that two do not get in each other's way."""
    if reason := preflight():
        pytest.skip(f"no real nodes on this machine: {reason}")
    program = (
        "import json, sys, time\n"
        "from m3_testcluster.real import real_cluster\n"
        "with real_cluster() as cluster:\n"
        "    prefix, directory = cluster.network.prefix, str(cluster.directory)\n"
        "    print(json.dumps([prefix, directory, cluster.network.subnet]), flush=True)\n"
        "    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout
        prefix, directory, subnet = json.loads(owner.stdout.readline())
        assert traces(prefix, directory)
        owner.send_signal(signal.SIGKILL)

    deadline = time.monotonic() + 30
    while (REGISTER / f"{subnet}.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert traces(prefix, directory) == []


def traces(prefix: str, directory: str) -> list[str]:
    """What is left of a cluster: namespaces, links, mounts, control groups, processes and files."""
    namespaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    found = [line for line in (namespaces + links).splitlines() if prefix in line]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if directory in line]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{prefix}*")]
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if directory in command:
                found.append(f"{process.name} {command}")
    return [*found, *([directory] if Path(directory).exists() else [])]
