"""MiniMax-M3's text model: what its weights are, and one step through it, readable from top to bottom.

Owns the order of the operations; their meaning is in `m3_kernels`. Holds weights and nothing that changes: all that a
step reads comes in as arguments (`StepTensors`), all that it leaves behind goes to the cache. Knows no file (weights
come from `checkpoint`), no request and no rank: it computes the heads and experts it is given, `token_rows` the rest.

Per layer: x += attention(norm(x)); x += mlp(norm(x)). Every norm is a Gemma norm. Source: reference of the released
model (`model_type: minimax_m3_vl`); the symbols in the shapes are those of `m3_kernels`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear

from m3_kernels import ops
from m3_kernels.layout import AttentionNorms, ExpertRows, LayerPages, RaggedBatch, RotaryAngles
from m3_kernels.mxfp8 import Mxfp8, Weight
from m3_worker.model.cache import PagedCache, StepTensors
from m3_worker.model.config import ModelConfig
from m3_worker.model.share import RankShare
from m3_worker.model.token_rows import OneRank, Ranks, StepRows
from m3_worker.model.vision import VisionTower, VisionWeights

WeightKind = Literal["projections", "output", "mlp", "experts", "shared"]
"""Matrices that a checkpoint may hold in MXFP8: of an attention, a dense MLP, the routed and the shared experts."""


@dataclass(frozen=True)
class Attention:
    """Weights of one attention, with or without an index branch."""

    projections: Weight
    """[H*D + 2*G*D + G*I + I, C]: queries, keys, values; in sparse layers also index queries, index key."""
    output: Weight
    """[C, H*D]"""
    norms: AttentionNorms


@dataclass(frozen=True)
class Mlp:
    """Weights of a dense MLP, which a shared expert is too."""

    gate_up: Weight
    """[2F, C], the gate half first."""
    down: Weight
    """[C, F]"""


@dataclass(frozen=True)
class Experts:
    """Weights of a mixture of experts. Router and bias stay in fp32, whatever the dtype of the rest."""

    router: Tensor
    """[E, C] fp32"""
    bias: Tensor
    """[E] fp32, added to the scores for choosing only."""
    gate_up: Weight
    """[E, 2F, C], the gate half first; on a rank its slots instead of the experts."""
    down: Weight
    """[E, C, F], as well"""
    shared: Mlp


@dataclass(frozen=True)
class Layer:
    """Weights of one layer."""

    attention_norm: Tensor
    """[C]"""
    attention: Attention
    mlp_norm: Tensor
    """[C]"""
    mlp: Mlp | Experts


@dataclass(frozen=True)
class ModelWeights:
    """All weights of one M3."""

    embedding: Tensor
    """[vocabulary, C]"""
    layers: tuple[Layer, ...]
    norm: Tensor
    """[C]"""
    lm_head: Tensor
    """[vocabulary, C]; no rows on a rank that samples nothing."""
    vision: VisionWeights | None = None
    """None for a checkpoint that has only text."""

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device | str,
        share: RankShare | None = None,
        *,
        quantised: Collection[WeightKind] = (),
    ) -> "ModelWeights":
        """Uninitialised weights of the right shapes: of the whole model, or a rank's share (`config` is the share's).

        The matrices of the kinds `quantised` are in MXFP8. On the device "meta" they take no memory.
        """

        def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        def matrix(kind: WeightKind, *shape: int) -> Weight:
            return Mxfp8.empty(shape, device) if kind in quantised else empty(*shape)

        def mlp(kind: WeightKind, width: int) -> Mlp:
            return Mlp(gate_up=matrix(kind, 2 * width, hidden), down=matrix(kind, hidden, width))

        def attention(is_sparse: bool) -> Attention:
            index_width = (config.kv_heads + 1) * config.index_dim if is_sparse else 0
            norms = AttentionNorms(
                q=empty(config.head_dim),
                k=empty(config.head_dim),
                index_q=empty(config.index_dim) if is_sparse else None,
                index_k=empty(config.index_dim) if is_sparse else None,
                eps=config.norm_eps,
            )
            width = (config.heads + 2 * config.kv_heads) * config.head_dim + index_width
            output = matrix("output", hidden, config.heads * config.head_dim)
            return Attention(matrix("projections", width, hidden), output, norms)

        def experts() -> Experts:
            count, width = config.experts, config.expert_intermediate_size
            held = count if share is None else share.plan.slots_per_rank
            return Experts(
                router=empty(count, hidden, dtype=torch.float32),
                bias=empty(count, dtype=torch.float32),
                gate_up=matrix("experts", held, 2 * width, hidden),
                down=matrix("experts", held, hidden, width),
                shared=mlp("shared", config.shared_intermediate_size),
            )

        hidden = config.hidden_size
        layers = tuple(
            Layer(
                attention_norm=empty(hidden),
                attention=attention(is_sparse),
                mlp_norm=empty(hidden),
                mlp=experts() if is_moe else mlp("mlp", config.dense_intermediate_size),
            )
            for is_sparse, is_moe in zip(config.sparse_layers, config.moe_layers, strict=True)
        )
        vision = None if config.vision is None else VisionWeights.allocate(config.vision, hidden, dtype, device)
        head = empty(config.vocab_size if share is None or share.has_ends else 0, hidden)
        return cls(empty(config.vocab_size, hidden), layers, empty(hidden), head, vision)


class M3Model:
    """One M3 text model on one device."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, ranks: Ranks | None = None) -> None:
        """`config` counts the heads that are in `weights`; without `ranks`, weights are all there are."""
        self.config = config
        self.weights = weights
        self.ranks = ranks or OneRank(sum(config.moe_layers), config.experts, weights.embedding.device)
        vision = (config.vision, weights.vision)
        self.vision = None if vision[0] is None or vision[1] is None else VisionTower(vision[0], vision[1])

    @torch.inference_mode()
    def forward(self, step: StepTensors, cache: PagedCache) -> Tensor:
        """Run the tokens of one step and return the logits of those asked for.

        Returns [R, vocabulary] fp32, one row per entry of `step.logit_rows`.
        Effect: writes keys, values and index keys of the step's tokens to `cache` at `step.slot_mapping`. The cache
        must hold those of all earlier tokens of each sequence. However a sequence is cut into steps, and whatever else
        is in a step, its logits are the same up to rounding.
        """
        return self.logits(self.states(step, cache).index_select(0, step.logit_rows))

    @torch.inference_mode()
    def states(self, step: StepTensors, cache: PagedCache) -> Tensor:
        """Run the tokens of one step and return their final normed states, [T, C]; for the effect see `forward`."""
        batch = RaggedBatch(step.positions, step.slot_mapping, step.query_starts, step.context_lengths, step.page_table)
        angles = ops.rotary_angles(step.positions, self.config.rotary_dim, self.config.rope_theta)
        x = embedding(step.token_ids, self.weights.embedding)  # [T, C]
        for media in step.media:
            x[media.rows] = media.embeddings
        rows = self.ranks.step(len(x))
        x = rows.own(x)
        moe_layers = 0
        for number, layer in enumerate(self.weights.layers):
            normed = rows.all(self._norm(x, layer.attention_norm))
            x = x + rows.sum(self._attention(normed, layer.attention, cache.layer(number), batch, angles, rows=rows))
            normed = self._norm(x, layer.mlp_norm)
            if isinstance(layer.mlp, Experts):
                x = x + self._experts(normed, layer.mlp, moe_layers, rows)
                moe_layers += 1
            else:
                x = x + self._dense_mlp(normed, layer.mlp)
        return rows.all(self._norm(x, self.weights.norm))

    @torch.inference_mode()
    def logits(self, states: Tensor) -> Tensor:
        """Final normed states [R, C] -> [R, vocabulary] fp32."""
        return ops.linear(states, self.weights.lm_head).float()

    def _attention(
        self,
        x: Tensor,
        weights: Attention,
        pages: LayerPages,
        batch: RaggedBatch,
        angles: RotaryAngles,
        *,
        rows: StepRows,
    ) -> Tensor:
        packed = ops.linear(x, weights.projections)
        q, index_q = ops.qk_norm_rope_insert(packed, weights.norms, angles, pages, batch.slots)
        if index_q is None or pages.index_k is None:
            attended = ops.dense_attention(q, pages, batch)  # [T, H, D]
        else:
            blocks = rows.choose_blocks(index_q, pages.index_k, batch, self.config.topk_blocks)  # [G, T, K]
            attended = ops.sparse_attention(q, pages, blocks, batch)
        return ops.linear(attended.flatten(1), weights.output)

    def _dense_mlp(self, x: Tensor, weights: Mlp) -> Tensor:
        hidden = ops.swiglu_clamped(ops.linear(x, weights.gate_up), self.config.swiglu_alpha, self.config.swiglu_limit)
        return ops.linear(hidden, weights.down)

    def _experts(self, x: Tensor, weights: Experts, layer: int, rows: StepRows) -> Tensor:
        """Route; dispatch, compute and combine, which is for `rows` to do where ranks share the experts."""
        chosen, shares = ops.route_experts(
            linear(x.float(), weights.router),
            weights.bias,
            self.config.experts_per_token,
            self.config.routed_scaling_factor,
        )

        def run(sorted_x: Tensor, by_expert: ExpertRows) -> Tensor:
            alpha, limit = self.config.swiglu_alpha, self.config.swiglu_limit
            return ops.run_experts(sorted_x, by_expert, weights.gate_up, weights.down, alpha=alpha, limit=limit)

        return rows.run_experts(layer, x, chosen, shares, run) + self._dense_mlp(x, weights.shared)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return ops.gemma_rms_norm(x, weight, self.config.norm_eps)
