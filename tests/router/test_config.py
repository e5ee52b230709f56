"""The configuration: the documented file, its round trip, and every refusal in words."""

from pathlib import Path

import pytest

from m3_router.config import (
    ConfigError,
    KeySettings,
    RedisSettings,
    RouterConfig,
    ServiceWorkers,
    access_from_yaml,
    keys_to_yaml,
    load,
    load_access,
    split_address,
)

COMPLETE = """
listen: 127.0.0.1:8080
admin: 127.0.0.1:9090
auth: none
contextTier: {thresholdTokens: 512000, inclusive: true}
prices:                      # USD per million tokens
  standard: {input: "0.30", output: "1.20", cacheRead: "0.06"}
  long: {input: "0.60", output: "2.40", cacheRead: "0.12"}
  priorityFactor: "1.5"
pools:
  - name: m3
    models: [MiniMax-M3]
    workers: [http://127.0.0.1:9101, http://127.0.0.1:9102]
"""
DIGEST = "ab" * 32


def test_the_documented_file_is_complete_and_its_prices_are_the_defaults() -> None:
    config = RouterConfig.from_yaml(COMPLETE)
    assert config.pools[0].workers == ("http://127.0.0.1:9101", "http://127.0.0.1:9102")
    assert config == RouterConfig.model_validate({"auth": "none", "pools": [config.pools[0]]})


@pytest.mark.parametrize(
    "text",
    [
        COMPLETE,
        COMPLETE.replace(
            "auth: none", f"auth: {{keys: [{{tenant: acme, sha256: {DIGEST}}}], keysFile: /etc/keys.yaml}}"
        ),
        COMPLETE.replace(
            "workers: [http://127.0.0.1:9101, http://127.0.0.1:9102]", "workers: {service: w, namespace: n}"
        ),
        COMPLETE.replace("127.0.0.1:8080", "'[::1]:0'"),
    ],
)
def test_what_is_written_reads_back_equal(text: str) -> None:
    config = RouterConfig.from_yaml(text)
    assert RouterConfig.from_yaml(config.to_yaml()) == config


def test_a_service_has_a_default_port_name() -> None:
    assert ServiceWorkers(service="w", namespace="n").port == "http"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("auth: none", "auth: {}", "auth: needs keys, keysFile, tenantsFile or tenants with keys"),
        ("auth: none", "auth: open", "auth: Input should be 'none'"),
        ("auth: none", "", "auth: Field required"),
        (
            "auth: none",
            "auth: {keys: [{tenant: a, sha256: secret}]}",
            "auth.keys.0.sha256: expected the SHA-256 digest",
        ),
        ("auth: none", f"auth: {{keys: [{{tenant: 'a b', sha256: {DIGEST}}}]}}", "'a b' is not a tenant name"),
        ('"0.30"', "0.30", "prices.standard.input: 0.3 is a float; write money and factors as quoted decimals"),
        ('"0.30"', '"-1"', "'-1' is not a decimal number"),
        ('"0.30"', '"0.3001"', "is 300.1 nano-dollars per token; it must be a whole number"),
        ('"1.5"', '"1.0333"', "0.30 x priorityFactor 1.0333 = 0.309990 is 309.99 nano-dollars"),
        ('"1.5"', '"0.5"', "priorityFactor: 0.5 is below 1"),
        ("listen: 127.0.0.1", "listen: 0.0.0.0", "auth: none would let everyone who reaches 0.0.0.0:8080"),
        ("listen: 127.0.0.1:8080", "listen: 127.0.0.1", "listen: '127.0.0.1' is not HOST:PORT"),
        ("listen: 127.0.0.1:8080", "listen: 127.0.0.1:99999", "the port is above 65535"),
        ("http://127.0.0.1:9101", "https://x:1", "pools.0.workers.0: 'https://x:1' is not http://HOST:PORT"),
        ("http://127.0.0.1:9101", "http://127.0.0.1:9102", "workers: 'http://127.0.0.1:9102' is named twice"),
        ("[http://127.0.0.1:9101, http://127.0.0.1:9102]", "[]", "pools.0.workers: needs at least one item"),
        (
            "[http://127.0.0.1:9101, http://127.0.0.1:9102]",
            "{service: W, namespace: n}",
            "pools.0.workers.service: 'W'",
        ),
        ("[MiniMax-M3]", "[a, a]", "models: 'a' is named twice"),
        ("[MiniMax-M3]", '["a b"]', "'a b' is not a model name"),
        ("thresholdTokens: 512000", "thresholdTokens: 0", "contextTier.thresholdTokens: Input should be greater"),
        ("pools:", "colour: red\npools:", "colour: Extra inputs are not permitted"),
        (
            "    models",
            "    tokensInFlight: 1000\n    models",
            "leaves the standard lane 750 tokens, fewer than one request",
        ),
        (
            "pools:",
            "limits: {bodyBytes: 4194304, bufferedBytes: 1048576}\npools:",
            "bufferedBytes: 1048576 is below bodyBytes",
        ),
        ("pools:", "lanes: {maxWaitSeconds: .inf}\npools:", "lanes.maxWaitSeconds: Input should be"),
        ("listen:", "{", "not YAML"),
    ],
)
def test_a_fault_names_field_value_and_rule(old: str, new: str, message: str) -> None:
    assert old in COMPLETE
    with pytest.raises(ConfigError) as refused:
        RouterConfig.from_yaml(COMPLETE.replace(old, new))
    assert message in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("M3", "modelPrices.1.models: no pool serves 'M3'; name one of MiniMax-M3, or '*' for all of them"),
        (
            "m3",
            "modelPrices.1.models: 'm3' is an alias; "
            "name the model behind it, 'MiniMax-M3', which its requests are priced by",
        ),
    ],
)
def test_prices_of_what_no_pool_serves_by_this_name_are_refused(model: str, message: str) -> None:
    text = COMPLETE + "aliases: {m3: MiniMax-M3}\nmodelPrices: [{models: ['*', MiniMax-M3]}, {models: [MODEL]}]\n"
    with pytest.raises(ConfigError) as refused:
        RouterConfig.from_yaml(text.replace("MODEL", model))
    assert str(refused.value) == message


def test_a_model_in_two_pools_is_refused() -> None:
    text = COMPLETE + "  - {name: other, models: [MiniMax-M3], workers: ['http://127.0.0.1:1']}\n"
    with pytest.raises(ConfigError, match=r"pools.models: 'MiniMax-M3' is named twice"):
        RouterConfig.from_yaml(text)


def test_allow_insecure_opens_other_addresses() -> None:
    text = COMPLETE.replace("listen: 127.0.0.1", "allowInsecure: true\nlisten: 0.0.0.0")
    assert RouterConfig.from_yaml(text).listen == "0.0.0.0:8080"


def test_keys_come_from_the_file_and_the_configuration_together(tmp_path: Path) -> None:
    there = KeySettings(tenant="file", sha256="cd" * 32, service_tiers=("priority",))
    file = tmp_path / "keys.yaml"
    file.write_text(keys_to_yaml([there]))
    auth = {"keys": [{"tenant": "acme", "sha256": DIGEST.upper()}], "keysFile": str(file)}
    config = RouterConfig.model_validate({**RouterConfig.from_yaml(COMPLETE).model_dump(), "auth": auth})
    assert config.auth != "none"
    assert [key.tenant for key in load_access(config.auth).keys] == ["acme", "file"]
    assert load_access(config.auth).keys[0].sha256 == DIGEST
    assert access_from_yaml("").keys == ()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.yaml: cannot be read"):
        load(tmp_path / "absent.yaml")
    file = tmp_path / "keys.yaml"
    file.write_text("- {tenant: a}")
    auth = RouterConfig.from_yaml(COMPLETE.replace("auth: none", f"auth: {{keysFile: {file}}}")).auth
    assert auth != "none"
    with pytest.raises(ConfigError, match=r"auth.keysFile .*keys.yaml: 0.sha256: Field required"):
        load_access(auth)


def test_the_url_of_redis_may_be_in_a_file_that_is_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "url"
    settings = RedisSettings(url_file=file)
    with pytest.raises(ConfigError, match=r"redis\.urlFile .*url: cannot be read"):
        settings.read_url()
    file.write_text("redis://:secret@redis:6379/1\n")
    assert settings.read_url() == "redis://:secret@redis:6379/1"
    file.write_text("http://:secret@redis")
    with pytest.raises(ConfigError, match=r"is not redis://HOST") as refused:
        settings.read_url()
    assert "secret" not in str(refused.value)
    for text in ("{}", "{url: 'redis://a', urlFile: b}"):
        with pytest.raises(ConfigError, match="redis: needs either url or urlFile"):
            RouterConfig.from_yaml(f"{COMPLETE}\nredis: {text}")


def test_addresses() -> None:
    assert split_address("127.0.0.1:80") == ("127.0.0.1", 80)
    assert split_address("[::1]:0") == ("::1", 0)
    for bad in ("::1:80", ":80", "a", "a:", "a:b", "a:²"):
        with pytest.raises(ValueError, match="is not HOST:PORT"):
            split_address(bad)
