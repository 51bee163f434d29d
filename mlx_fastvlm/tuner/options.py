"""What a training is told; mlx-lm's names and defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from ..checkpoints.adapters import AdapterConfig
from ..errors import UsageError, require, require_whole

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "muon": optim.Muon,
    "sgd": optim.SGD,
    "adafactor": optim.Adafactor,
}
SCHEDULES = ("cosine", "linear")
MLX_SCHEDULES = ("cosine_decay", "exponential_decay", "linear_schedule", "step_decay")
DECAYS = ("adamw", "sgd", "muon", "adafactor")


@dataclass(frozen=True)
class TrainingOptions:
    """The options of :func:`mlx_fastvlm.tuner.train`, checked before anything is read.

    Attributes:
        adapters: what is trained.
        adapter_path: a folder to write to, every ``save_every`` iterations and at the end; None writes nothing.
        resume: go on from what ``adapter_path`` holds, exactly as if it had not stopped.
        resume_adapter_file: begin with these weights instead of new ones.
        feature_folder: where images' features are kept for the next time; None keeps them in memory.
        train_projector, train_vision: the projector too, the tower too: by adapters, or wholly with "full".
        vision_stages: of the tower's stages, so many from the end, and what follows them; what the others make of an
            image is computed once. -1 is all of the tower.
        train_embeddings: the token embedding and the head too, for words that the model never had to say.
        iters: batches to train on.
        batch_size: rows in each.
        grad_accumulation_steps: batches whose gradients make one update; as if it were one batch of them all.
        learning_rate: at the beginning, or at the end of the warm-up.
        lr_schedule: None leaves it so; "cosine" or "linear" goes down to nothing at the last iteration; or mlx-lm's
            ``{"name": "cosine_decay", "arguments": [1e-5, 1000], "warmup": 100}``, one of MLX's schedules.
        warmup: updates in which the rate rises from nothing.
        optimizer: adam, adamw (both with bias correction), muon, sgd or adafactor; ``optimizer_config`` are further
            arguments of MLX's class.
        weight_decay: of the optimizers that have one.
        max_grad_norm: gradients that are longer as a whole are made so long; None leaves them.
        max_seq_length: longer rows are left out and counted, never cut; an image's tokens count.
        image_size: see ``FastVlmProcessor.prepare``; what the model will be asked with.
        mask_prompt: learn the answers only; False learns all words.
        grad_checkpoint: keep less for the gradients, and compute it again.
        steps_per_report, steps_per_eval, save_every: iterations between reports, evaluations, and saved states.
        val_batches: of the validation set in an evaluation; -1 is all.
        seed: of the order, the new adapters and the dropout.

    Raises:
        UsageError: for a value that an option can't have.
    """

    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    adapter_path: str | Path | None = None
    resume: bool = False
    resume_adapter_file: str | Path | None = None
    feature_folder: str | Path | None = None
    train_projector: bool = False
    train_vision: bool = False
    vision_stages: int = -1
    train_embeddings: bool = False
    iters: int = 1000
    batch_size: int = 4
    grad_accumulation_steps: int = 1
    learning_rate: float = 1e-5
    lr_schedule: str | dict[str, Any] | None = None
    warmup: int = 0
    optimizer: str = "adam"
    optimizer_config: dict[str, Any] = field(default_factory=dict)
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    max_seq_length: int = 2048
    image_size: int | None = None
    mask_prompt: bool = True
    grad_checkpoint: bool = False
    steps_per_report: int = 10
    steps_per_eval: int = 200
    save_every: int = 100
    val_batches: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("iters", "batch_size", "grad_accumulation_steps", "max_seq_length")
        for name in (*counts, "steps_per_report", "steps_per_eval", "save_every"):
            require_whole(name, getattr(self, name))
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name))
        for name, least in (("warmup", 0), ("seed", 0), ("val_batches", -1), ("vision_stages", -1)):
            require_whole(name, getattr(self, name))
            require(getattr(self, name) >= least, f"{name} must be at least {least}", getattr(self, name))
        for name in ("resume", "train_projector", "train_vision", "train_embeddings", "mask_prompt", "grad_checkpoint"):
            require(isinstance(getattr(self, name), bool), f"{name} must be True or False", getattr(self, name))
        if self.vision_stages >= 0 and not self.train_vision:
            raise UsageError("vision_stages says how much of the tower is trained; ask for train_vision too.")
        require(_above_zero(self.learning_rate), "learning_rate must be a number above 0", self.learning_rate)
        if self.max_grad_norm is not None:
            require(_above_zero(self.max_grad_norm), "max_grad_norm must be a number above 0", self.max_grad_norm)
        for name in ("iters", "save_every"):
            if getattr(self, name) % self.grad_accumulation_steps:
                raise UsageError(
                    f"{name} must be a multiple of grad_accumulation_steps ({self.grad_accumulation_steps}), got "
                    f"{getattr(self, name)}: between updates there is nothing to save."
                )
        if self.resume and (self.adapter_path is None or self.resume_adapter_file is not None):
            raise UsageError("To resume, name the adapter_path to go on from, and no resume_adapter_file.")
        if self.grad_checkpoint and self.adapters.dropout:
            raise UsageError("grad_checkpoint can't be combined with dropout: computing again would drop other inputs.")
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        require(self.optimizer in OPTIMIZERS, f"optimizer must be one of {', '.join(OPTIMIZERS)}", self.optimizer)
        if self.weight_decay is not None:
            require(self.optimizer in DECAYS, f"weight_decay needs one of {', '.join(DECAYS)}", self.optimizer)
        if isinstance(self.lr_schedule, str):
            require(
                self.lr_schedule in SCHEDULES, f"lr_schedule must be one of {', '.join(SCHEDULES)}", self.lr_schedule
            )
        elif self.lr_schedule is not None:
            name = self.lr_schedule.get("name") if isinstance(self.lr_schedule, dict) else None
            require(name in MLX_SCHEDULES, f"lr_schedule's name must be one of {', '.join(MLX_SCHEDULES)}", name)
            require(self.warmup == 0, "lr_schedule has a warmup of its own; leave out warmup", self.warmup)
        self.make_optimizer()

    @property
    def updates(self) -> int:
        """How often the weights change."""
        return self.iters // self.grad_accumulation_steps

    def make_optimizer(self) -> optim.Optimizer:
        """A new optimizer.

        Raises:
            UsageError: MLX does not take these arguments.
        """
        # As published and as torch has it; MLX's own default leaves the correction out.
        config: dict[str, Any] = {"bias_correction": True} if self.optimizer in ("adam", "adamw") else {}
        config |= self.optimizer_config
        if self.weight_decay is not None:
            config["weight_decay"] = self.weight_decay
        try:
            return OPTIMIZERS[self.optimizer](learning_rate=self._schedule(), **config)
        except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
            raise UsageError(f"MLX can't make this optimizer: {error}; correct its options.") from None

    def _schedule(self) -> Any:
        """The learning rate: a number, or a function of the update."""
        if isinstance(self.lr_schedule, dict):
            given = self.lr_schedule
            after = getattr(optim.schedulers, given["name"])(*given["arguments"])
            return _warmed(after, given["arguments"][0], given.get("warmup", 0), given.get("warmup_init", 0.0))
        if self.lr_schedule is None:
            steady = self.learning_rate
            return _warmed(lambda _: mx.array(steady), steady, self.warmup, 0.0) if self.warmup else steady
        rest = max(1, self.updates - self.warmup)
        kind = {"cosine": optim.cosine_decay, "linear": lambda rate, steps: optim.linear_schedule(rate, 0.0, steps)}
        return _warmed(kind[self.lr_schedule](self.learning_rate, rest), self.learning_rate, self.warmup, 0.0)


def _warmed(schedule: Any, rate: float, warmup: int, begin: float) -> Any:
    """A schedule behind a warm-up of so many updates."""
    if not warmup:
        return schedule
    return optim.join_schedules([optim.linear_schedule(begin, rate, warmup), schedule], [warmup + 1])


def _above_zero(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e300
