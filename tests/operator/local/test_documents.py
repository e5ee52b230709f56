"""Reading the file that `m3 up` and `kubectl apply` are given."""

from pathlib import Path

import pytest

from m3_operator.local.documents import DocumentError, parse_documents, read_documents

DEPLOYMENT = """
apiVersion: serving.m3.dev/v1alpha1
kind: M3Deployment
metadata: {name: tiny}
spec:
  model: {name: MiniMax-M3, source: {tiny: {seed: 7}}}
"""
ROUTER = """
apiVersion: serving.m3.dev/v1alpha1
kind: M3Router
metadata: {name: front}
spec: {deployments: [{name: tiny}]}
"""


def test_documents_come_back_typed_and_with_the_defaults_of_the_schema() -> None:
    found = parse_documents(f"{DEPLOYMENT}---\n---{ROUTER}", source="f.yaml")

    (deployment,), (router,) = found.deployments, found.routers
    assert deployment.spec.replicas == 1
    assert deployment.spec.model.source.tiny is not None
    assert deployment.spec.model.source.tiny.seed == 7
    assert router.spec.context_tier.threshold_tokens == 512_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "f.yaml: not YAML: "),
        ("- 1", "f.yaml: document 1: not an object but list"),
        ("", "f.yaml: holds no M3Deployment"),
        (ROUTER, "f.yaml: holds no M3Deployment"),
        (
            "apiVersion: v1\nkind: Secret",
            "f.yaml: document 1: v1 Secret is not supported: only M3Deployment and M3Router",
        ),
        (
            DEPLOYMENT.replace("v1alpha1", "v2"),
            "f.yaml: document 1: serving.m3.dev/v2 M3Deployment is not supported",
        ),
        (DEPLOYMENT + "---" + DEPLOYMENT, "f.yaml: document 2, M3Deployment tiny: the file has two of this name"),
        (
            DEPLOYMENT + "---" + ROUTER.replace("name: front", "name: front, namespace: other"),
            "f.yaml: objects of one namespace only; it has default, other",
        ),
        (DEPLOYMENT + "  replicas: -1", "f.yaml: document 1, M3Deployment tiny: spec.replicas: "),
        (DEPLOYMENT + "  bogus: 1", "f.yaml: document 1, M3Deployment tiny: spec.bogus: unknown field"),
        (DEPLOYMENT + "  replicas: 1\n  replicas: 2", "the key 'replicas' is there twice"),
        (
            DEPLOYMENT + "  parallelism: {gpusPerNode: 8, tensor: 3}",
            "parallelism.tensor must divide parallelism.gpusPerNode",
        ),
        (DEPLOYMENT.replace("tiny: {seed: 7}", "tiny: {}, hostPath: {path: /m}"), "set exactly one of pvc, hostPath"),
        (DEPLOYMENT.replace("{name: tiny}", "{name: Tiny}"), "f.yaml: document 1, M3Deployment Tiny: metadata.name: "),
        (DEPLOYMENT.replace("metadata: {name: tiny}\n", ""), "M3Deployment None: metadata: "),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_document_field_and_rule(text: str, message: str) -> None:
    with pytest.raises(DocumentError) as refused:
        parse_documents(text, source="f.yaml")

    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")

    with pytest.raises(DocumentError, match=r"missing\.yaml: No such file or directory"):
        read_documents(tmp_path / "missing.yaml")
    with pytest.raises(DocumentError, match="not UTF-8"):
        read_documents(binary)
