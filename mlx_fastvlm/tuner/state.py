"""A training on disk: its adapters for use, and all that going on exactly takes.

Beside mlx-lm's files (``checkpoints/adapters.py``), with a copy of the weights at each saved step, lies
``training_state.safetensors``: the optimizer's arrays, and in its metadata the step and what must stay the same. (The
order of the data and what dropout leaves out follow from the seed and the step.) It is written after the step's weights
and names them by its step, so whatever moment a process is killed at, both belong together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from ..checkpoints.adapters import AdapterConfig, check_finite, write_adapter, write_adapter_tensors
from ..files import atomic_file, read_safetensors

STATE = "training_state.safetensors"


def trained(model: nn.Module) -> dict[str, mx.array]:
    """The parameters that are trained, by name."""
    return dict(tree_flatten(model.trainable_parameters()))


def weights_of(folder: Path, step: int) -> Path:
    """The copy of a step's weights, under mlx-lm's name."""
    return folder / f"{step:07d}_adapters.safetensors"


def save(
    folder: Path, step: int, model: nn.Module, optimizer: optim.Optimizer, config: AdapterConfig, plan: dict[str, Any]
) -> None:
    """Write what a training has reached after so many iterations.

    Args:
        plan: what must be the same for it to go on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = trained(model)
    write_adapter_tensors(weights_of(folder, step), weights)
    arrays = {f"optimizer.{name}": array for name, array in tree_flatten(optimizer.state)}
    with atomic_file(folder / STATE) as unfinished:
        mx.save_safetensors(str(unfinished), arrays, {"step": str(step), "plan": json.dumps(plan)})
    write_adapter(folder, config, weights)


def resume(folder: Path, model: nn.Module, optimizer: optim.Optimizer, plan: dict[str, Any]) -> int:
    """Take up what :func:`save` wrote, in place; the step that it was written at.

    Args:
        optimizer: one that has been given the weights, and made no update.

    Raises:
        FileNotFoundError: nothing was saved there.
        ValueError: it is broken, or was trained otherwise.
    """
    path = folder / STATE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {STATE}, so there is nothing to resume; leave out --resume.")
    arrays, metadata = read_safetensors(path)
    try:
        step, before = int(metadata["step"]), json.loads(metadata["plan"])
        assert isinstance(before, dict)
        assert step >= 0
    except (KeyError, ValueError, AssertionError, RecursionError):
        raise ValueError(f"{path} is not a saved state of a training; train again, into another folder.") from None
    other = [name for name in sorted(plan.keys() | before.keys()) if plan.get(name) != before.get(name)]
    if other:
        raise ValueError(
            f"{folder} was trained with another {' and another '.join(other)}, and can only be resumed with the same; "
            "begin anew from its weights with --resume-adapter-file."
        )
    load_weights(weights_of(folder, step), model)
    _take_up(optimizer, arrays, path)
    mx.eval(model.parameters(), optimizer.state)
    return step


def load_weights(path: Path, model: nn.Module) -> None:
    """Take up trained weights from a file, in place.

    Raises:
        FileNotFoundError, ValueError: there is no such file; it is broken, not finite, or another model's.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; name a file of adapters.")
    tensors, _ = read_safetensors(path)
    check_finite(tensors, path)
    _check_shapes(tensors, trained(model), path)
    model.load_weights(list(tensors.items()), strict=False)


def _take_up(optimizer: optim.Optimizer, arrays: dict[str, mx.array], path: Path) -> None:
    expected = {f"optimizer.{name}": array for name, array in tree_flatten(optimizer.state)}
    _check_shapes(arrays, expected, path)
    optimizer.state = tree_unflatten([(name.removeprefix("optimizer."), x) for name, x in arrays.items()])


def _check_shapes(found: dict[str, mx.array], expected: dict[str, mx.array], path: Path) -> None:
    for name in sorted(found.keys() | expected.keys()):
        if name not in found or name not in expected or found[name].shape != expected[name].shape:
            raise ValueError(
                f"{path} does not fit what is trained here (at {name}); train the same layers of the same model."
            )
