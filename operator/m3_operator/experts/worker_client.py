"""The two requests about experts that a worker's rank 0 answers. Any trouble is an ExpertsUnavailableError."""

import json

import httpx

from m3_operator.errors import OperatorError
from m3_operator.expert_plan.plan import ExpertPlan, ExpertPlanError
from m3_operator.experts.reading import ExpertReading, read_experts

_LARGEST_BYTES = 64 * 2**20


class ExpertsUnavailableError(OperatorError):
    """A worker did not answer, or not as it should."""


class WorkerClient:
    """Asks and tells workers."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def read(self, address: str, nodes: int) -> ExpertReading | None:
        """What the group behind `http://HOST:PORT` says; None if its model has no experts."""
        url = f"{address}/internal/experts"
        body = bytearray()
        try:
            async with self._client.stream("GET", url) as answer:
                if answer.status_code == httpx.codes.NOT_FOUND:
                    return None
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > _LARGEST_BYTES:
                        raise ExpertsUnavailableError(f"GET {url}: more than {_LARGEST_BYTES} bytes")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ExpertsUnavailableError(f"GET {url}: {error or type(error).__name__}") from None
        if answer.status_code != httpx.codes.OK:
            raise ExpertsUnavailableError(f"GET {url}: HTTP {answer.status_code}")
        try:
            return read_experts(json.loads(body), nodes)
        except (ValueError, ExpertPlanError) as error:
            raise ExpertsUnavailableError(f"GET {url}: {error}") from None

    async def tell(self, address: str, plan: ExpertPlan, timeout_seconds: float) -> None:
        """Have the group take a plan; returns when every rank has it."""
        url = f"{address}/internal/expert-plan"
        try:
            answer = await self._client.put(url, json=plan.as_json(), timeout=timeout_seconds)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ExpertsUnavailableError(f"PUT {url}: {error or type(error).__name__}") from None
        if answer.status_code != httpx.codes.OK:
            raise ExpertsUnavailableError(f"PUT {url}: HTTP {answer.status_code}, {answer.text[:300]}")
