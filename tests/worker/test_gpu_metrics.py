"""What NVML says becomes gauges, what it does not say is absent, and without it there is one line in the log."""

import logging
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from m3_worker.gpu_metrics import GpuReading, open_gpu_metrics
from m3_worker.metrics import render_metrics
from m3_worker.serving import WorkerState


class NvmlError(Exception):
    """As the library's own."""


@dataclass
class FakeNvml:
    """Two GPUs, of which the second is old: it knows its memory alone."""

    has_driver: bool = True
    events: list[tuple[int, int]] = field(default_factory=list)
    tensor_percent: float = 40.0
    samples_alive: int = 0

    NVMLError = NvmlError
    NVML_SUCCESS = 0
    NVML_TEMPERATURE_GPU = 0
    NVML_GPM_METRICS_GET_VERSION = 1
    NVML_GPM_METRIC_ANY_TENSOR_UTIL = 5
    nvmlEventTypeXidCriticalError = 8  # noqa: N815

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.has_driver:
            raise NvmlError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index > 1:
            raise NvmlError("Invalid Argument")
        return 100 + index

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> int:  # noqa: N802
        return {b"GPU-a": 100, b"GPU-b": 101}[uuid]

    def nvmlDeviceGetIndex(self, handle: int) -> int:  # noqa: N802
        return handle - 100

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=30, total=120)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=self.known(handle, 85))

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return self.known(handle, 650_500)

    def nvmlDeviceGetTemperature(self, handle: int, kind: int) -> int:  # noqa: N802
        return self.known(handle, 61)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:  # noqa: N802
        return self.known(handle, 0x04 | 0x40 | 0x01)

    def nvmlEventSetCreate(self) -> str:  # noqa: N802
        return "events"

    def nvmlDeviceRegisterEvents(self, handle: int, kinds: int, events: str) -> None:  # noqa: N802
        assert (kinds, events) == (8, "events")
        self.known(handle, 0)

    def nvmlEventSetWait_v2(self, events: str, timeout_ms: int) -> Any:  # noqa: N802
        assert timeout_ms == 0
        if not self.events:
            raise NvmlError("Timeout")
        handle, xid = self.events.pop(0)
        return SimpleNamespace(device=handle, eventData=xid)

    def nvmlGpmSampleAlloc(self) -> object:  # noqa: N802
        return object()

    def nvmlGpmSampleGet(self, handle: int, sample: object) -> object:  # noqa: N802
        self.known(handle, 0)
        self.samples_alive += 1
        return sample

    def nvmlGpmSampleFree(self, sample: object) -> None:  # noqa: N802
        self.samples_alive -= 1

    def c_nvmlGpmMetricsGet_t(self) -> Any:  # noqa: N802
        return SimpleNamespace(metrics=[SimpleNamespace(nvmlReturn=0, value=0.0)])

    def nvmlGpmMetricsGet(self, asked: Any) -> Any:  # noqa: N802
        assert (asked.version, asked.numMetrics, asked.metrics[0].metricId) == (1, 1, 5)
        asked.metrics[0].value = self.tensor_percent
        return asked

    @staticmethod
    def known(handle: int, value: int) -> int:
        if handle == 101:
            raise NvmlError("Not Supported")
        return value


def page(readings: list[GpuReading]) -> dict[tuple[str, str], float]:
    text = render_metrics(WorkerState(1024), readings).decode()
    return {
        (sample.name.removeprefix("m3_worker_gpu_"), ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "gpu" in sample.labels
    }


def test_what_the_driver_says_becomes_gauges_and_what_it_does_not_say_is_absent() -> None:
    nvml = FakeNvml()
    metrics = open_gpu_metrics(lambda: nvml, {})
    assert metrics is not None
    metrics.read()
    nvml.events = [(100, 48), (100, 79)]
    assert page(metrics.read()) == {
        ("utilization_ratio", "0"): 0.85,
        ("tensor_active_ratio", "0"): 0.4,
        ("memory_used_bytes", "0"): 30,
        ("memory_used_bytes", "1"): 30,
        ("memory_total_bytes", "0"): 120,
        ("memory_total_bytes", "1"): 120,
        ("memory_used_ratio", "0"): 0.25,
        ("memory_used_ratio", "1"): 0.25,
        ("power_watts", "0"): 650.5,
        ("temperature_celsius", "0"): 61,
        ("last_xid", "0"): 79,
        ("throttled", "0,power_cap"): 1,
        ("throttled", "0,thermal_hardware"): 1,
    }


def test_the_first_reading_has_no_tensor_activity_and_samples_do_not_pile_up() -> None:
    nvml = FakeNvml()
    metrics = open_gpu_metrics(lambda: nvml, {})
    assert metrics is not None
    assert metrics.read()[0].tensor_activity is None
    for _ in range(5):
        assert metrics.read()[0].tensor_activity == 0.4
    assert nvml.samples_alive == 1


@pytest.mark.parametrize(("visible", "handles"), [("1", [101]), ("1,0", [101, 100]), ("GPU-b", [101]), ("-1", [])])
def test_only_the_gpus_that_cuda_may_use_are_read(visible: str, handles: list[int]) -> None:
    metrics = open_gpu_metrics(FakeNvml, {"CUDA_VISIBLE_DEVICES": visible})
    assert metrics is not None
    assert [gpu.handle for gpu in metrics.gpus.values()] == handles


def absent() -> Any:
    raise ImportError("no module named pynvml")


@pytest.mark.parametrize(
    ("load", "words"),
    [(absent, "nvidia-ml-py is not installed"), (lambda: FakeNvml(has_driver=False), "Driver Not Loaded")],
)
def test_without_a_library_or_a_driver_there_is_one_line_and_no_gauges(
    load: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert open_gpu_metrics(load, {}) is None
    (line,) = caplog.messages
    assert words in line
    assert page([]) == {}
