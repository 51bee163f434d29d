"""The decoder over several processes: each holds a share of every layer's heads and of its perceptron's width.

As in Megatron-LM (arXiv 1909.08053): q, k, v, gate and up are cut by outputs, o and down by inputs, whose partial
results are added up over the group, twice a layer. Tower, projector, embedding and head are whole in each process, so
all of them see the same hidden states, and choose the same tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import shard_inplace

from ..errors import UsageError
from . import memory
from .group import join_group
from .lora import LINEAR
from .pretrained import load
from .threads import end_streams_with_thread

if TYPE_CHECKING:
    from ..processing.processor import FastVlmProcessor
    from .fastvlm import FastVlmForConditionalGeneration


class SummedLinear(nn.Module):
    """A linear layer that has its share of the inputs; the results of all processes are added up.

    Args:
        linear: plain or quantized, of any form, without a bias, which would be added once by each process.
        group: of the processes.
    """

    def __init__(self, linear: nn.Module, group: mx.distributed.Group) -> None:
        super().__init__()
        self.linear = linear
        self._group = group

    def __call__(self, x: mx.array) -> mx.array:
        """(..., share of the inputs) -> (..., outputs)."""
        return mx.distributed.all_sum(self.linear(x), group=self._group)


def shard(
    model: FastVlmForConditionalGeneration, group: mx.distributed.Group | None = None
) -> FastVlmForConditionalGeneration:
    """Keep this process's share of the decoder, in place. With ``load(..., lazy=True)`` before, no more than one
    layer is ever whole in memory.

    Every process of the group has to make the same calls afterwards, with the same options: each token takes part of
    all of them. Where tokens are drawn, give the same ``seed`` to all.

    Args:
        group: of the processes (by default all that ``mlx.launch`` has started).

    Returns:
        The model. Alone in its group it stays as it is.

    Raises:
        UsageError: heads, widths or groups of quantized weights that the processes can't share equally, adapters that
            are not fused, or a model that is sharded already.
    """
    end_streams_with_thread()
    _cut(model, join_group() if group is None else group)
    _read(model)
    return model


def load_share(
    path_or_repo: str | Path,
    group: mx.distributed.Group,
    *,
    dtype: str | mx.Dtype | None = None,
    revision: str | None = None,
    adapter_path: str | Path | None = None,
    force: bool = False,
) -> tuple[FastVlmForConditionalGeneration, FastVlmProcessor]:
    """:func:`load` and :func:`shard`, with memory checked for this process's share; arguments and errors are theirs."""
    model, processor = load(path_or_repo, lazy=True, dtype=dtype, revision=revision, adapter_path=adapter_path)
    _cut(model, group)
    if not force:
        memory.check_memory(str(path_or_repo), model, processor.image_settings.size)
    _read(model)
    return model, processor


def _cut(model: FastVlmForConditionalGeneration, group: mx.distributed.Group) -> None:
    """Put shares in the place of the decoder's matrices; nothing is read yet."""
    if group.size() == 1:
        return
    _check(model, group.size())
    for layer in model.language_model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            shard_inplace(linear, "all-to-sharded", group=group)
        for linear in (attention.o_proj, mlp.down_proj):
            shard_inplace(linear, "sharded-to-all", group=group)
        attention["o_proj"] = SummedLinear(attention.o_proj, group)
        mlp["down_proj"] = SummedLinear(mlp.down_proj, group)


def _read(model: FastVlmForConditionalGeneration) -> None:
    """Layer by layer: of a matrix on disk, the share stays and the rest is let go."""
    for layer in model.language_model.layers:
        mx.eval(layer.parameters())
    mx.eval(model.parameters())


def _check(model: FastVlmForConditionalGeneration, size: int) -> None:
    config = model.config.text_config
    shared = {
        "attention heads": config.num_attention_heads,
        "KV heads": config.num_key_value_heads,
        "of the perceptron's width": config.intermediate_size,
    }
    for what, count in shared.items():
        if count % size:
            raise UsageError(
                f"{size} processes can't share {count} {what} equally; give a number of processes that divides "
                f"{' and '.join(f'{number}' for number in sorted(set(shared.values())))}."
            )
    for layer in model.language_model.layers:
        for linear in (*_linears(layer.self_attn), *_linears(layer.mlp)):
            _check_linear(linear)
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            groups = linear.scales.shape[-1] if "scales" in linear else size
            if groups % size:
                raise UsageError(
                    f"{size} processes can't share the {groups} groups of quantized weights equally; convert the model "
                    "again with a smaller --q-group-size."
                )


def _linears(module: nn.Module) -> list[nn.Module]:
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return [module[name] for name in names if name in module]


def _check_linear(linear: nn.Module) -> None:
    if isinstance(linear, SummedLinear):
        raise UsageError("The decoder is sharded already; load the model again.")
    if not isinstance(linear, LINEAR):
        raise UsageError(
            f"A {type(linear).__name__} can't be shared by several processes; fuse the adapters first (python -m "
            "mlx_fastvlm.fuse)."
        )
