"""The GPUs of this node as NVML sees them: utilisation, memory, power, heat, and what went wrong.

Owns the connection to NVML (nvidia-ml-py), which is opened once and read at each scrape; it makes no CUDA context and
takes no memory of a GPU. A driver that does not know a value leaves it out. XID errors are those since the start of the
worker: NVML tells of them as events, and has no list. Activity of tensor cores is the mean since the scrape before, and
known from Hopper on.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

log = logging.getLogger(__name__)

_Value = TypeVar("_Value")
_THROTTLES: Final[Mapping[int, str]] = {
    0x04: "power_cap",
    0x08: "hardware_slowdown",
    0x20: "thermal_software",
    0x40: "thermal_hardware",
    0x80: "power_brake",
}
"""Bits of NVML's nvmlClocksEventReason* that mean less speed than asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """One GPU now. None: the driver does not say."""

    gpu: str
    """Its index among the GPUs that this process may use."""
    utilization: float | None = None
    """Share of the last moments in which any kernel ran, 0 to 1."""
    tensor_activity: float | None = None
    """Share of cycles in which tensor cores worked, 0 to 1."""
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_watts: float | None = None
    temperature_celsius: int | None = None
    last_xid: int | None = None
    """Number of the last critical XID error; 0: none since the start."""
    throttled: frozenset[str] | None = None
    """Why its clocks are lower than they could be."""


@dataclass
class _Gpu:
    handle: Any  # nvidia-ml-py has no types
    last_xid: int | None = None
    sample: Any = None  # the GPM sample of the scrape before


@dataclass
class GpuMetrics:
    """Reads all GPUs. May be read from any thread, by one at a time."""

    library: Any
    """The module `pynvml`, or what a test has."""
    gpus: dict[str, _Gpu]
    events: Any = None
    """Where the driver leaves XID errors; None: it cannot."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> list[GpuReading]:
        """All GPUs, now. Blocks for some milliseconds."""
        with self._lock:
            self._take_xids()
            return [self._reading(name, gpu) for name, gpu in self.gpus.items()]

    def _reading(self, name: str, gpu: _Gpu) -> GpuReading:
        nvml, handle = self.library, gpu.handle
        rates = self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        milliwatts = self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        reasons = self._ask(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        return GpuReading(
            gpu=name,
            utilization=None if rates is None else rates.gpu / 100,
            tensor_activity=self._tensor_activity(gpu),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            power_watts=None if milliwatts is None else milliwatts / 1000,
            temperature_celsius=self._ask(
                lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
            ),
            last_xid=gpu.last_xid,
            throttled=None if reasons is None else frozenset(why for bit, why in _THROTTLES.items() if reasons & bit),
        )

    def _take_xids(self) -> None:
        """Remember the errors that were told since the last look."""
        while self.events is not None:
            event = self._ask(lambda: self.library.nvmlEventSetWait_v2(self.events, 0))
            if event is None:  # NVML's way to say that there is none is an error, too
                return
            index = self._index(event.device)
            for name, gpu in self.gpus.items():
                if self._index(gpu.handle) == index:
                    gpu.last_xid = int(event.eventData)
                    log.error("GPU %s: XID %d", name, gpu.last_xid)

    def _index(self, handle: Any) -> int | None:  # noqa: ANN401 - of a module without types
        return self._ask(lambda: int(self.library.nvmlDeviceGetIndex(handle)))

    def _tensor_activity(self, gpu: _Gpu) -> float | None:
        """From the difference of two samples of GPU performance monitoring (GPM)."""
        nvml, before = self.library, gpu.sample
        sample = self._ask(lambda: nvml.nvmlGpmSampleGet(gpu.handle, nvml.nvmlGpmSampleAlloc()))
        gpu.sample = sample
        if sample is None or before is None:
            return None
        asked = nvml.c_nvmlGpmMetricsGet_t()
        asked.version, asked.numMetrics = nvml.NVML_GPM_METRICS_GET_VERSION, 1
        asked.sample1, asked.sample2 = before, sample
        asked.metrics[0].metricId = nvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL
        answer = self._ask(lambda: nvml.nvmlGpmMetricsGet(asked))
        self._ask(lambda: nvml.nvmlGpmSampleFree(before))
        if answer is None or answer.metrics[0].nvmlReturn != nvml.NVML_SUCCESS:
            return None
        return min(max(float(answer.metrics[0].value) / 100, 0.0), 1.0)

    def _ask(self, call: Callable[[], _Value]) -> _Value | None:
        try:
            return call()
        except self.library.NVMLError:
            return None


def open_gpu_metrics(
    load: Callable[[], Any] | None = None, environment: Mapping[str, str] | None = None
) -> GpuMetrics | None:
    """Connect to NVML; None, with one line in the log, where there is no library, no driver or no GPU.

    `load` gives the module; `environment`'s CUDA_VISIBLE_DEVICES picks GPUs by index or UUID, as it does for CUDA.
    """
    try:
        nvml = (load or _library)()
    except ImportError:
        log.info("no metrics of GPUs: nvidia-ml-py is not installed")
        return None
    try:
        nvml.nvmlInit()
        handles = _handles(nvml, (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES"))
    except nvml.NVMLError as error:
        log.info("no metrics of GPUs: %s", error)
        return None
    found = GpuMetrics(nvml, {str(place): _Gpu(handle) for place, handle in enumerate(handles)})
    _listen_for_xids(nvml, found)
    return found


def _library() -> Any:  # noqa: ANN401 - a module without types
    import pynvml

    return pynvml


def _handles(nvml: Any, visible: str | None) -> list[Any]:  # noqa: ANN401 - of a module without types
    if visible is None:
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    names = [name for name in (part.strip() for part in visible.split(",")) if name and name != "-1"]
    return [
        nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name.encode())
        for name in names
    ]


def _listen_for_xids(nvml: Any, metrics: GpuMetrics) -> None:  # noqa: ANN401 - of a module without types
    try:
        events = nvml.nvmlEventSetCreate()
    except nvml.NVMLError:
        return
    for gpu in metrics.gpus.values():
        try:
            nvml.nvmlDeviceRegisterEvents(gpu.handle, nvml.nvmlEventTypeXidCriticalError, events)
        except nvml.NVMLError:
            continue
        gpu.last_xid = 0
        metrics.events = events
