"""The metrics of several processes as one text, read back by Prometheus' own parser."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from m3_router.processes.exposition import merged

AWKWARD = 'a "quoted" {brace} \\ \n \u2028 text'


def exposition(requests: int, label: str = AWKWARD) -> str:
    registry = CollectorRegistry()
    Counter("requests", "Requests.\nTwo lines.", ["model"], registry=registry).labels(label).inc(requests)
    Gauge("requests_waiting", "A name that begins with another's.", registry=registry).set(requests + 0.5)
    Histogram("wait_seconds", "Waits.", buckets=(1.0,), registry=registry).observe(0.25 * requests)
    return generate_latest(registry).decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def test_every_sample_is_there_once_with_the_process_it_came_from() -> None:
    texts = {0: exposition(3), 4: exposition(5)}
    expected = {
        (name, labels | {("process", str(process))}): value
        for process, text in texts.items()
        for (name, labels), value in samples(text).items()
    }
    assert samples(merged(texts)) == expected


def test_the_samples_of_a_family_stand_together_under_one_head() -> None:
    lines = merged({0: exposition(1), 1: exposition(2)}).split("\n")
    heads = [line for line in lines if line.startswith("#")]
    assert len(heads) == len(set(heads))
    families = [family.name for family in text_string_to_metric_families("\n".join(lines))]
    assert len(families) == len(set(families))


def test_a_family_that_one_process_alone_has_keeps_its_type() -> None:
    (family,) = text_string_to_metric_families(
        merged({0: "", 1: "# HELP a_total A.\n# TYPE a_total counter\na_total 1\n"})
    )
    assert (family.type, family.samples[0].labels) == ("counter", {"process": "1"})


def test_samples_without_labels_with_empty_ones_and_without_a_head_get_the_label() -> None:
    text = "bare 1\nempty{} 2\n# a comment\ntimed 3 1795003200000\n"
    assert merged({7: text}).splitlines() == [
        'bare{process="7"} 1',
        'empty{process="7"} 2',
        'timed{process="7"} 3 1795003200000',
    ]


def test_no_process_is_an_empty_text() -> None:
    assert merged({}) == ""
