"""`GET /internal/experts`: where experts are, how many tokens chose each. `PUT /internal/expert-plan`: move them.

GET answers

    {"epoch": E, "ranks": R, "experts": N, "slots": S, "layers": [[expert of each slot], ...],
     "tokens": [[tokens that chose each expert], ...]}

with one list per layer that has experts, in their order. Slots belong to ranks evenly and in order: those of rank r are
r * S / R to (r + 1) * S / R - 1. Tokens are counted since the start, over all ranks.

PUT takes {"epoch": E, "layers": [[expert of each slot], ...]}, its epoch above the present one. Layers change one after
another, each between two steps and on all ranks, while requests go on; no token is computed with a mixture. The answer,
200 with the epoch, comes when every rank has the whole plan. 400: no such plan; 404: a model without experts, or a
worker that computes on one rank; 409: an epoch that is not above the present one (the same plan again is 200), or
another plan under way; 500: a rank could not read an expert, and the layer named and all after it stay as they were.
"""

import asyncio
from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from m3_worker.api.errors import ApiError, json_response, not_ready
from m3_worker.api.incoming import receive_request
from m3_worker.model.expert_plan import ExpertPlan, PlanError
from m3_worker.ranks.errors import GroupError, SwapError
from m3_worker.serving import Phase, ServedExperts, ServedModel, WorkerState
from m3_worker.token_stream import EngineFailedError


def expert_routes(state: WorkerState) -> APIRouter:
    """The routes for those who place experts."""
    router = APIRouter()
    swapping = asyncio.Lock()

    @router.get("/internal/experts")
    async def experts() -> Response:
        if state.model is None or state.phase is Phase.FAILED:
            raise not_ready(state)
        held = _experts(state.model)
        try:
            tokens = await state.model.engine.between_steps(held.load)
        except (EngineFailedError, GroupError) as error:
            raise ApiError(503, str(error)) from None
        plan = held.plan
        sizes = {"ranks": plan.ranks, "experts": plan.experts, "slots": plan.slots}
        return json_response({**plan.as_json(), **sizes, "tokens": tokens})

    @router.put("/internal/expert-plan")
    async def replace(request: Request) -> Response:
        incoming = await receive_request(request, state, needs_model=False)
        held = _experts(incoming.model)
        if held.plan.ranks == 1:
            raise ApiError(404, "this worker computes on one rank, where every expert is: there is no plan to replace")
        try:
            plan = held.plan.successor(incoming.body)
        except PlanError as error:
            raise ApiError(400, str(error)) from None
        if swapping.locked():
            raise ApiError(409, "another plan is being taken: try again when it is", retry_after_seconds=1)
        async with swapping:
            await _take(incoming.model, held, plan)
        return json_response({"epoch": plan.epoch})

    return router


async def _take(model: ServedModel, held: ServedExperts, plan: ExpertPlan) -> None:
    """Have all ranks take a plan. Raises ApiError."""
    if plan == held.plan:
        return
    if not plan.is_after(held.plan):
        raise ApiError(409, f"epoch is {plan.epoch}: must be above the present one, {held.plan.epoch}", param="epoch")
    try:
        for layer in held.plan.changed_layers(plan):
            await model.engine.between_steps(partial(held.take_layer, plan, layer))
        await model.engine.between_steps(partial(held.finish, plan))
    except SwapError as error:
        raise ApiError(500, str(error)) from None
    except (EngineFailedError, GroupError) as error:
        raise ApiError(503, str(error)) from None


def _experts(model: ServedModel) -> ServedExperts:
    if model.experts is None:
        raise ApiError(404, "the model that this worker serves has no experts")
    return model.experts
