"""The training loop: any of a FastVLM's layers, or adapters around them, on conversations about images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from ..errors import UsageError
from ..models.lora import add_adapters, tower_parts, vocabulary_layers, with_keys
from ..models.memory import bound_cache
from . import state
from .batches import Batch, Order, in_order, make_batch
from .features import ImageFeatures
from .opening import OpeningCache, common_opening
from .ranks import Ranks
from .reports import Clock, Report
from .updates import Updates

if TYPE_CHECKING:
    from ..checkpoints.adapters import AdapterConfig
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.processor import FastVlmProcessor
    from .options import TrainingOptions
    from .samples import Sample

# Options that a training can only go on with unchanged.
PLANNED = (
    *("batch_size", "grad_accumulation_steps", "seed", "optimizer", "optimizer_config", "weight_decay"),
    *("learning_rate", "lr_schedule", "warmup", "max_grad_norm", "image_size"),
    *("train_projector", "train_vision", "vision_stages", "train_embeddings"),
)


def prepare_model(model: FastVlmForConditionalGeneration, options: TrainingOptions) -> AdapterConfig:
    """Freeze a model but for what is to be trained, in place, with new adapters where they are wanted.

    Returns:
        The config with every layer named, as it is saved.

    Raises:
        UsageError: for layers that there are not, and for full fine-tuning of quantized ones.
    """
    mx.random.seed(options.seed)
    config = with_keys(
        model,
        options.adapters,
        projector=options.train_projector,
        vision=options.train_vision,
        vision_stages=options.vision_stages,
        embeddings=options.train_embeddings,
    )
    model.freeze()
    if config.fine_tune_type != "full":
        add_adapters(model, config)
        return config
    layers = model.language_model.layers
    chosen: list[nn.Module] = [*layers[0 if config.num_layers < 0 else len(layers) - config.num_layers :]]
    chosen += [model.multi_modal_projector] if options.train_projector else []
    names = tower_parts(model, options.vision_stages) if options.train_vision else []
    names += vocabulary_layers(model) if options.train_embeddings else []
    named = dict(model.named_modules())
    chosen += [named[name] for name in names]
    for part in chosen:
        if any("scales" in layer for layer in part.modules()):
            raise UsageError("Full fine-tuning needs plain weights; take a model that is not quantized, or train lora.")
        part.unfreeze()
    if not chosen:
        raise UsageError("Nothing is chosen to be trained; num_layers must be at least 1, or the projector trained.")
    return config


def answer_loss(model: FastVlmForConditionalGeneration, features: ImageFeatures, batch: Batch, given: Any) -> mx.array:
    """Summed cross entropy of a batch's answer tokens, in float32.

    The head runs for those tokens alone: logits of a whole vocabulary for each image token would be the largest array.

    Args:
        given: what ``features.of`` gave for the batch.
    """
    images, decoder = None if given is None else features.embeddings(given), model.language_model
    caches: list[Any] | None = None
    if batch.opening is not None:
        caches = [OpeningCache() for _ in decoder.layers]
        decoder(model.embed(batch.opening), cache=caches)
    hidden = decoder(model.embed(batch.input_ids, images), cache=caches).last_hidden_state
    logits = model.logits(hidden.flatten(0, 1)[batch.predicting]).astype(mx.float32)
    return nn.losses.cross_entropy(logits, batch.targets, reduction="sum")


def evaluate(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    samples: list[Sample],
    features: ImageFeatures,
    *,
    batch_size: int = 4,
    batches: int = -1,
    ranks: Ranks | None = None,
) -> float:
    """Mean cross entropy of the answers' tokens, without dropout; of all samples, or the first so many batches.

    Args:
        ranks: processes that each take a part; None is this one alone.
    """
    training = model.training
    model.eval()
    total = tokens = 0.0
    chosen = in_order(samples, batch_size, batches)
    for some in chosen if ranks is None else ranks.share(chosen):
        batch = make_batch(some, processor.pad_token_id, common_opening(some, processor.image_token_id))
        total += _number(answer_loss(model, features, batch, features.of(some)))
        tokens += batch.targets.size
        bound_cache()
    model.train(training)
    if ranks is not None:
        total, tokens = map(_number, ranks.sum([mx.array(total), mx.array(tokens)]))
    return total / tokens


def train(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    train_set: list[Sample],
    valid_set: list[Sample],
    options: TrainingOptions,
    report: Callable[[Report], None] = lambda report: None,
    progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> AdapterConfig:
    """Train a model, in place; under ``mlx.launch`` together with the other processes, which all call it alike.

    Args:
        train_set, valid_set: samples, of which the second may be none.
        report, progress: are told how it goes: a :class:`Report`, and ("images", done, total). Of several processes
            the first is.

    Returns:
        What was trained, as it is saved.

    Raises:
        UsageError, ValueError, OSError: before anything is trained; and ValueError for a loss or gradients that are not
            finite: the last update was not made then, and its rows are named.
    """
    trainer = _Trainer(model, processor, train_set, valid_set, options)
    trainer.report = report
    if options.resume_adapter_file is not None:
        state.load_weights(Path(options.resume_adapter_file).expanduser(), model)
    trainer.progress = progress
    trainer.prepare_features()
    if options.resume:
        trainer.resume()
    try:
        trainer.run()
    finally:
        model.eval()
        model.gradient_checkpointing_disable()
    return trainer.config


class _Trainer:
    """A training under way."""

    def __init__(
        self,
        model: FastVlmForConditionalGeneration,
        processor: FastVlmProcessor,
        train_set: list[Sample],
        valid_set: list[Sample],
        options: TrainingOptions,
    ) -> None:
        if not train_set:
            raise ValueError("There is nothing to train on; the data has no train set.")
        self.model, self.processor, self.options = model, processor, options
        self.train_set, self.valid_set = train_set, valid_set
        self.config = prepare_model(model, options)
        self.optimizer = options.make_optimizer()
        self.updates = Updates(model, self.optimizer, options.max_grad_norm)
        # Dropout leaves out other inputs in each row; a checkpoint keeps no keys and values.
        self._opens = not (options.adapters.dropout or options.grad_checkpoint)
        self.order = Order(train_set, options.batch_size, options.seed)
        self.folder = None if options.adapter_path is None else Path(options.adapter_path).expanduser()
        self.report: Callable[[Report], None] = lambda report: None
        self.progress: Callable[[str, int, int], None] = lambda step, done, total: None
        self.done = self.saved = self.answer_tokens = 0
        self.ranks = Ranks()
        if options.batch_size < self.ranks.count:
            raise UsageError(
                f"batch_size is for all processes together, and must be at least their number ({self.ranks.count}), "
                f"got {options.batch_size}."
            )
        self.ranks.divide_cores()
        self.features: ImageFeatures
        self._clock = Clock()

    def prepare_features(self) -> None:
        def progress(done: int, total: int) -> None:
            if self.ranks.is_first:
                self.progress("images", done, total)

        options = self.options
        folder = None if options.feature_folder is None else Path(options.feature_folder).expanduser()
        self.features = ImageFeatures(self.model, self.processor, options.image_size, folder)
        samples = [*self.train_set, *self.valid_set]
        if self.ranks.count > 1 and folder is not None:  # each computes some for all, if they share the folder
            self.features.prepare(samples, progress, self.ranks)
            self.ranks.wait()
        self.features.prepare(samples, progress)

    @property
    def plan(self) -> dict[str, Any]:
        """What a training must have in common with the one that it goes on from."""
        options, digest = self.options, hashlib.sha256()
        for sample in self.train_set:
            digest.update(repr((sample.ids, sample.learnt, [str(image) for image in sample.images])).encode())
        plan = {name: getattr(options, name) for name in PLANNED}
        if isinstance(options.lr_schedule, str):
            plan["iters"] = options.iters  # at whose end the rate is nothing
        if self.ranks.count > 1:
            plan["processes"] = self.ranks.count  # whose sums are rounded otherwise
        return {**plan, **self.config.to_dict(), "train set": digest.hexdigest()[:32]}

    def resume(self) -> None:
        assert self.folder is not None
        self.done = self.saved = state.resume(self.folder, self.model, self.optimizer, self.plan)
        if self.done >= self.options.iters:
            raise UsageError(
                f"{self.folder} has had {self.done} iterations already; to continue, ask for more in total (--iters)."
            )

    def run(self) -> None:
        options, model = self.options, self.model
        if options.grad_checkpoint:
            model.gradient_checkpointing_enable()
        model.train()
        mx.eval(model.parameters(), self.optimizer.state)
        gradients_of = nn.value_and_grad(model, answer_loss)
        self.ranks.agree([self.done, self.plan, options.iters, options.steps_per_eval, len(self.valid_set)])
        if self.done == 0:
            self._evaluate()
        self._clock = Clock()
        while self.done < options.iters:
            self._update(gradients_of)
            if self._due(options.steps_per_report):
                self._tell(self._clock.told(self.done, self.optimizer, self.answer_tokens))
                self._clock = Clock()
            if self._due(options.steps_per_eval):
                with self._clock.stopped():
                    self._evaluate()
            if self._due(options.save_every):
                with self._clock.stopped():
                    self._save()

    def _due(self, every: int) -> bool:
        """Whether an iteration that is a multiple of ``every`` was among the last update's, or all are done."""
        before = self.done - self.options.grad_accumulation_steps
        return self.done // every > before // every or self.done == self.options.iters

    def _update(self, gradients_of: Callable[..., tuple[mx.array, Any]]) -> None:
        """One update, of the gradients of so many batches, as if they were one."""
        first, count = self.done, self.options.grad_accumulation_steps
        mx.random.seed(_seed(self.options.seed, first) ^ self.ranks.rank)  # so that dropout needs no state to go on
        batches = [self.order[first + i] for i in range(count)]
        tokens = sum(sample.answer_tokens for samples in batches for sample in samples)
        total, gradients = mx.array(0.0), None
        for samples in map(self.ranks.share, batches):
            if not samples:  # of an epoch's last batch
                continue
            opening = common_opening(samples, self.processor.image_token_id) if self._opens else 0
            batch = make_batch(samples, self.processor.pad_token_id, opening)
            loss, some = gradients_of(self.model, self.features, batch, self.features.of(samples))
            some = self.updates.gather(some)
            total, gradients = total + loss, some if gradients is None else tree_map(mx.add, gradients, some)
            mx.eval(total, gradients)
        if gradients is None:
            gradients = self.updates.gather(tree_map(mx.zeros_like, self.model.trainable_parameters()))
        total, gradients = self.ranks.sum((total, gradients))
        gradients, norm = self.updates.mean(gradients, tokens)
        if not (math.isfinite(_number(total)) and math.isfinite(_number(norm))):
            self._give_up(batches, _number(total), _number(norm))
        self.updates.apply(gradients)
        mx.eval(self.model.trainable_parameters(), self.optimizer.state)
        bound_cache()
        self.done += count
        self.answer_tokens += tokens
        self._clock.count(batches, _number(total), tokens)

    def _give_up(self, batches: list[list[Sample]], loss: float, norm: float) -> NoReturn:
        """What is known of an update that can't be made; the weights before it are saved, if they are any good."""
        what = f"a loss of {loss}" if not math.isfinite(loss) else f"gradients of length {norm}"
        rows = [sample.place for samples in batches for sample in samples]
        shown = "; ".join(rows[:8]) + ("; ..." if len(rows) > 8 else "")
        if self.folder is not None and self.done > self.saved and self._is_finite():
            self._save()
        kept = f"the adapters of iteration {self.saved} are in {self.folder}" if self.saved else "nothing was saved"
        raise ValueError(
            f"Iteration {self.done + 1} has {what} ({shown}); {kept}. Look at these rows, lower --learning-rate, or "
            "take float32."
        )

    def _is_finite(self) -> bool:
        return all(mx.isfinite(x).all().item() for x in state.trained(self.model).values())

    def _evaluate(self) -> None:
        if not self.valid_set or self.options.val_batches == 0:
            return
        sizes = {"batch_size": self.options.batch_size, "batches": self.options.val_batches}
        loss = evaluate(self.model, self.processor, self.valid_set, self.features, **sizes, ranks=self.ranks)
        self._tell(Report(self.done, valid_loss=loss))

    def _save(self) -> None:
        if self.folder is not None:
            if self.ranks.is_first:
                state.save(self.folder, self.done, self.model, self.optimizer, self.config, self.plan)
            self.saved = self.done

    def _tell(self, told: Report) -> None:
        if self.ranks.is_first:
            self.report(told)


def _seed(seed: int, iteration: int) -> int:
    """A number of its own for each iteration."""
    return int.from_bytes(hashlib.sha256(f"{seed} {iteration}".encode()).digest()[:8], "big")


def _number(x: mx.array) -> float:
    return float(x.item())  # type: ignore[arg-type]  # a real one
