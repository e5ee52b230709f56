"""The admin port over HTTP: what is open, what is guarded, and what an act leaves behind."""

import json
from typing import Any

import httpx
import pytest

from m3_console.scene import ADMIN_DIGEST, ADMIN_KEY, Scene, bill
from m3_router.admin import Acts

KEY = {"authorization": f"Bearer {ADMIN_KEY}"}


def client_of(scene: Scene, peer: str = "127.0.0.1") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(scene.app(), client=(peer, 4711))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9090")


@pytest.fixture
def scene() -> Scene:
    return Scene(admin_digest=ADMIN_DIGEST)


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/", "/console/main.js", "/console/console.css"])
async def test_what_holds_no_data_is_open_to_everyone(scene: Scene, path: str) -> None:
    async with client_of(scene, peer="10.0.0.9") as client:
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("path", ["/ledger", "/workers", "/api/state"])
async def test_what_holds_data_needs_this_machine_or_the_key(scene: Scene, path: str) -> None:
    async with client_of(scene, peer="10.0.0.9") as client:
        refused = await client.get(path)
        opened = await client.get(path, headers=KEY)
    async with client_of(scene) as client:
        local = await client.get(path)

    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert (opened.status_code, local.status_code) == (200, 200)


async def test_every_answer_carries_the_strict_policy(scene: Scene) -> None:
    async with client_of(scene) as client:
        answers = [await client.get(path) for path in ("/", "/api/state", "/console/none.js")]

    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert answers[1].headers["cache-control"] == "no-store"


async def test_a_page_that_the_browser_has_is_not_sent_again(scene: Scene) -> None:
    async with client_of(scene) as client:
        first = await client.get("/")
        again = await client.get("/", headers={"if-none-match": first.headers["etag"]})

    assert first.headers["content-type"] == "text/html; charset=utf-8"
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["..%2fapp.py", "app.py", ".", "%00", "index.html%00.js"])
async def test_only_files_of_the_page_are_sent(scene: Scene, name: str) -> None:
    async with client_of(scene) as client:
        assert (await client.get(f"/console/{name}")).status_code == 404


async def test_the_document_says_what_its_sources_and_the_bills_say(scene: Scene) -> None:
    scene.settle(bill(request_id="r-7", worker="worker-1"))
    scene.observatory.tick(1000.0, 2000.0)
    scene.observatory.tick(1000.5, 2000.5)  # within the same step
    scene.observatory.tick(1001.0, 2001.0)
    async with client_of(scene) as client:
        state = (await client.get("/api/state")).json()
        later = (await client.get("/api/state", params={"since": state["timeline"]["last"]})).json()

    assert state["version"] == 1
    assert state["router"]["name"] == "scene"
    assert [lane["waiting"] for lane in state["pools"][0]["lanes"]] == [0, 2]
    assert state["pools"][0]["workers"][0]["recent"] is None
    assert state["pools"][0]["workers"][1]["recent"]["cached_tokens"] == 600
    assert [tenant["name"] for tenant in state["tenants"]] == ["acme", "zeta"]
    assert state["decisions"][0]["request_id"] == "r-7"
    assert state["acts"] == ["drain", "undrain", "revoke"]
    assert state["timeline"]["requests"] == [1, 0]
    assert state["timeline"]["series"][1]["in_flight_tokens"] == [30_000, 30_000]
    assert later["timeline"]["requests"] == []


@pytest.mark.parametrize("since", ["-1", "x", str(2**60)])
async def test_a_sample_number_that_is_none_is_refused(scene: Scene, since: str) -> None:
    async with client_of(scene) as client:
        assert (await client.get("/api/state", params={"since": since})).status_code == 422


async def test_an_act_is_done_and_leaves_one_line_with_who_what_when_and_how_it_ended(scene: Scene) -> None:
    what = {"pool": "m3", "worker": "worker-1"}
    async with client_of(scene, peer="10.0.0.9") as client:
        answer = await client.post("/api/acts/drain", json=what, headers=KEY)

    assert (answer.status_code, answer.json()) == (200, {"message": "drain is done."})
    assert scene.done == [("drain", what)]
    (line,) = scene.audit_lines
    assert line.pop("time") > 1_700_000_000
    assert line == {
        "audit": "drain",
        "who": "admin key",
        "peer": "10.0.0.9",
        "what": what,
        "outcome": "done",
        "message": "drain is done.",
    }
    assert scene.observatory.state(1.0, 1.0).audit[0].what == what


@pytest.mark.parametrize(
    ("act", "content", "status", "message"),
    [
        ("drain", {"pool": "m3", "worker": "nobody"}, 404, "There is no worker nobody."),
        ("drain", {"pool": "m3"}, 400, 'drain takes exactly {"pool": "...", "worker": "..."}.'),
        ("drain", {"pool": "m3", "worker": 7}, 400, "worker: expected 1 to 256 printable characters."),
        ("drain", {"pool": "m3", "worker": "a\nb"}, 400, "worker: expected 1 to 256 printable characters."),
        ("drain", [], 400, 'drain takes exactly {"pool": "...", "worker": "..."}.'),
        ("revoke", {"sha256": "sk-secret"}, 400, "sha256: expected the key's SHA-256 digest"),
        ("reload", {}, 404, "There is no act 'reload' here; there are: drain, undrain, revoke."),
        ("drain", {"pool": "m3", "worker": "w" * 5000}, 413, "The fields of an act are never longer than 4096 bytes."),
    ],
)
async def test_an_act_that_cannot_be_done_is_refused_and_recorded(
    scene: Scene, act: str, content: Any, status: int, message: str
) -> None:
    async with client_of(scene) as client:
        answer = await client.post(f"/api/acts/{act}", json=content)

    assert answer.status_code == status
    assert answer.json()["error"].startswith(message)
    (line,) = scene.audit_lines
    assert (line["outcome"], line["who"]) == ("refused", "this machine")
    assert "sk-secret" not in json.dumps(line)
    assert scene.done == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"authorization": "Bearer wrong"}, 401), ({**KEY, "origin": "https://evil.example"}, 403)],
    ids=["no key", "wrong key", "other origin"],
)
async def test_who_may_not_changes_nothing_and_is_recorded(scene: Scene, headers: dict[str, str], status: int) -> None:
    async with client_of(scene, peer="10.0.0.9") as client:
        answer = await client.post("/api/acts/drain", json={"pool": "m3", "worker": "worker-1"}, headers=headers)

    assert answer.status_code == status
    assert scene.done == []
    assert [(line["outcome"], line["who"], line["what"]) for line in scene.audit_lines] == [("refused", "nobody", {})]


async def test_an_act_that_breaks_is_recorded_as_failed_and_shows_no_inner_text(scene: Scene) -> None:
    async def breaks(_: object) -> str:
        raise RuntimeError("the password is swordfish")

    scene.acts = Acts({"reload": breaks})
    transport = httpx.ASGITransport(scene.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9090") as client:
        answer = await client.post("/api/acts/reload", json={})

    assert answer.status_code == 500
    assert [(line["outcome"], line["message"]) for line in scene.audit_lines] == [("failed", "RuntimeError")]
    assert "swordfish" not in answer.text


async def test_a_form_of_another_page_is_no_act(scene: Scene) -> None:
    """A form can post anywhere without being asked first, but not as JSON."""
    body = b'{"pool": "m3", "worker": "worker-1"}'
    async with client_of(scene) as client:
        answer = await client.post("/api/acts/drain", content=body, headers={"content-type": "text/plain"})

    assert answer.status_code == 415
    assert scene.done == []


async def test_a_router_without_acts_offers_none() -> None:
    scene = Scene(has_acts=False)
    async with client_of(scene) as client:
        answer = await client.post("/api/acts/drain", json={"pool": "m3", "worker": "worker-1"})
        state = (await client.get("/api/state")).json()

    assert (answer.status_code, state["acts"]) == (404, [])
