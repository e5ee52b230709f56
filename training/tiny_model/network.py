"""The network in training: transformers' M3 modules, with attention that also teaches the index branch.

The choice of blocks has no gradient, so the index branch learns to predict where attention goes: for every query and
group, the softmax over its block scores is drawn by a KL divergence to the share of the group's attention that falls on
each block. Gradients stop at the branch's input; the trunk learns nothing from it. Source: the MSA paper's training of
the index. At first attention stays dense (`is_sparse` False), then it keeps to the chosen blocks.
The routers' correction bias has no gradient either: it moves against the load of each expert (`balance`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    MiniMaxM3SparseForConditionalGeneration,
    MiniMaxM3VLConfig,
)
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import (
    MiniMaxM3VLAttention,
    MiniMaxM3VLIndexer,
    MiniMaxM3VLTopKRouter,
    apply_rotary_pos_emb,
)

_NAME = "m3_training"


class Network:
    """M3 with what its training needs."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Fresh weights, drawn from torch's generator."""
        AttentionInterface.register(_NAME, self._attend)
        AttentionMaskInterface.register(_NAME, lambda *_, **__: None)
        settings = MiniMaxM3VLConfig.from_dict(config)
        settings.text_config._attn_implementation = _NAME  # the library's way to choose it
        settings.vision_config._attn_implementation = "sdpa"
        self.model = MiniMaxM3SparseForConditionalGeneration(settings)
        self.is_sparse = False
        self.teaches_index = True
        self._index_losses: list[Tensor] = []
        self._loads: dict[MiniMaxM3VLTopKRouter, Tensor] = {}
        for module in self.model.modules():
            if isinstance(module, MiniMaxM3VLIndexer):
                module.forward = _IndexStates(module)
            elif isinstance(module, MiniMaxM3VLTopKRouter):
                module.register_forward_hook(self._count)

    def hidden(self, ids: Tensor, pixels: Tensor | None = None, grids: Tensor | None = None) -> Tensor:
        """Normed final states [B, S, C] of token ids [B, S], padded on the right."""
        self._index_losses.clear()
        out = self.model.model(input_ids=ids, pixel_values=pixels, image_grid_thw=grids, use_cache=False)
        return out.last_hidden_state

    def index_loss(self) -> Tensor:
        """The KL divergence of the last `hidden`, its mean over layers and queries."""
        return torch.stack(self._index_losses).mean() if self._index_losses else torch.zeros(())

    @torch.no_grad()
    def round(self) -> None:
        """Take the values that a checkpoint in bf16 gives back."""
        for parameter in self.model.parameters():
            parameter.copy_(parameter.bfloat16())

    @torch.no_grad()
    def balance(self, step: float) -> float:
        """Move each router's bias by `step` against its load. Returns the highest load, 1 being even."""
        highest = 0.0
        for gate, load in self._loads.items():
            gate.e_score_correction_bias += step * torch.sign(load.mean() - load)
            highest = max(highest, float(load.max() / load.mean()))
        return highest

    def _count(self, gate: MiniMaxM3VLTopKRouter, _: object, output: tuple[Tensor, Tensor, Tensor]) -> None:
        self._loads[gate] = torch.bincount(output[2].flatten(), minlength=gate.num_experts).float()

    def _attend(
        self,
        module: MiniMaxM3VLAttention,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        _mask: None,
        *,
        scaling: float,
        block_indices: tuple[Tensor, Tensor] | None,
        **_options: object,
    ) -> tuple[Tensor, None]:
        """q: [B, H, S, D]; k, v: [B, G, S, D]; block_indices: what `_IndexStates` returns. Returns [B, S, H, D]."""
        tokens, branch = q.shape[2], module.indexer
        chooses = self.is_sparse and branch is not None and tokens > branch.block_size * branch.topk_blocks
        if branch is None or block_indices is None or not (self.teaches_index or chooses):
            attended = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
            return attended.transpose(1, 2), None
        hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)  # the future
        blocks = _block_scores(*block_indices, hidden, branch.block_size)  # [B, G, S, NB]
        if chooses:
            hidden = hidden | ~_chosen(blocks, branch)[..., :tokens]  # [B, G, S, S]
        if self.teaches_index:
            self._index_losses.append(_divergence(blocks, _shares(q * scaling, k, hidden), branch.block_size))
        if chooses:
            visible = ~hidden.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
            attended = scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scaling, enable_gqa=True)
        else:
            attended = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        return attended.transpose(1, 2), None


class _IndexStates:
    """What an index branch computes before it chooses: queries [B, G, S, I] and keys [B, 1, S, I]."""

    def __init__(self, branch: MiniMaxM3VLIndexer) -> None:
        self._branch = branch

    def __call__(self, x: Tensor, angles: tuple[Tensor, Tensor], *_: object) -> tuple[Tensor, Tensor]:
        branch, x = self._branch, x.detach()
        q = branch.q_norm(branch.q_proj(x).unflatten(-1, (branch.num_heads, branch.head_dim))).transpose(1, 2)
        k = branch.k_norm(branch.k_proj(x).unflatten(-1, (1, branch.head_dim))).transpose(1, 2)
        return apply_rotary_pos_emb(q, k, *angles)


def _block_scores(q: Tensor, k: Tensor, future: Tensor, block: int) -> Tensor:
    """[B, G, S, NB]: the highest score of each block's tokens; -inf where none has been seen yet."""
    scores = (q @ k.transpose(-1, -2)).masked_fill(future, float("-inf"))
    scores = pad(scores, (0, -scores.shape[-1] % block), value=float("-inf"))
    return scores.unflatten(-1, (-1, block)).amax(-1)


@torch.no_grad()
def _chosen(blocks: Tensor, branch: MiniMaxM3VLIndexer) -> Tensor:
    """[B, G, S, NB * block] bool: keys in the blocks that a query takes, its own block first."""
    own = torch.arange(blocks.shape[2]) // branch.block_size
    boosted = blocks.scatter(-1, own[:, None].expand(*blocks.shape[:3], 1), float("inf"))
    taken = torch.zeros_like(blocks, dtype=torch.bool)
    taken.scatter_(-1, boosted.topk(min(branch.topk_blocks, blocks.shape[-1])).indices, True)
    return taken.repeat_interleave(branch.block_size, dim=-1)


@torch.no_grad()
def _shares(q: Tensor, k: Tensor, hidden: Tensor) -> Tensor:
    """[B, G, S, S]: how a group's heads share out their attention, on average."""
    scores = q.unflatten(1, (k.shape[1], -1)) @ k[:, :, None].mT  # [B, G, H / G, S, S]
    return scores.masked_fill_(hidden.unsqueeze(-3), float("-inf")).softmax(-1).mean(2)


def _divergence(blocks: Tensor, shares: Tensor, block: int) -> Tensor:
    """Mean KL of the blocks' softmax from the attention [B, G, S, S] that falls on each block."""
    padded = pad(shares, (0, -shares.shape[-1] % block))
    target = padded.unflatten(-1, (-1, block)).sum(-1)
    guess = blocks.log_softmax(-1).clamp_min(-1e4)
    return (target * (target.clamp_min(1e-9).log() - guess)).sum(-1).mean()
