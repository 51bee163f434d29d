"""Images' features for training, computed once: while the tower is frozen, every epoch would compute the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..cache.fingerprint import model_fingerprint
from ..files import atomic_file, read_safetensors
from ..models.memory import bound_cache
from ..processing.sources import open_source

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.processor import FastVlmProcessor
    from .ranks import Ranks
    from .rows import ImageSource
    from .samples import Sample

AT_A_TIME = 4 * 1024**2  # pixels that go through the tower together
MOST = 16  # images at a time
NAME = "features"
Progress = Callable[[int, int], None]


def trains(*parts: nn.Module) -> bool:
    """Whether any parameter of these parts of a model is to be trained."""
    return any(tree_flatten(part.trainable_parameters()) for part in parts)


class ImageFeatures:
    """What the first trained part of a model is given for an image: projected features, or the tower's if the projector
    is trained, each (tokens, width); or where the tower's last stages are, what its first ones make of the image,
    (height, width, channels). A tower that is trained from the beginning is given pixels, of which nothing is kept.

    Args:
        model: ready for training, that is, frozen where it is not trained.
        image_size: see ``FastVlmProcessor.prepare``.
        folder: where they are kept, a file an image; None keeps them in memory. A file's name is made of the image's
            bytes, how the processor makes pixels of them, and the weights in front.
    """

    def __init__(
        self,
        model: FastVlmForConditionalGeneration,
        processor: FastVlmProcessor,
        image_size: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self._model, self._processor, self._image_size = model, processor, image_size
        tower = model.vision_tower
        self.of_pixels = trains(tower.stem, *tower.stages[:1])
        # The stages from the first one that is trained on; -1 where the whole tower is frozen.
        frozen = next((i for i, stage in enumerate(tower.stages) if trains(stage)), len(tower.stages))
        self._to_come = len(tower.stages) - frozen if trains(tower) else -1
        self._projects = not trains(tower, model.multi_modal_projector)
        self._kept: dict[str, mx.array] = {}
        self._names: dict[ImageSource, str] = {}
        self._folder: Path | None = None
        if not self.of_pixels:
            parts = [tower, *([model.multi_modal_projector] if self._projects else [])]
            if self._to_come >= 0:
                parts = [tower.stem, *tower.stages[:frozen]]
            self._made_by = f"{model_fingerprint(*parts)} {processor.check_image_size(image_size)} " + repr(
                processor.image_settings
            )
            self._folder = folder

    def prepare(
        self, samples: list[Sample], progress: Progress = lambda done, total: None, ranks: Ranks | None = None
    ) -> None:
        """Compute what is not kept yet for these samples' images; a trained tower's are only decoded, as a check.

        Args:
            progress: is told how many images are done, and of how many.
            ranks: processes that each take a part of the images; None is this one alone.

        Raises:
            ValueError, OSError: an image can't be read; the sentence begins with its row.
        """
        places = {image: sample.place for sample in samples for image in sample.images}
        if ranks is not None:  # of images, not of samples: neighbours often ask about the same one
            places = dict(ranks.share([*places.items()]))
        at_a_time = max(1, min(MOST, AT_A_TIME // self._processor.check_image_size(self._image_size) ** 2))
        missing: list[tuple[ImageSource, str]] = []
        for done, (image, place) in enumerate(places.items(), 1):
            if self.of_pixels:
                self._pixels([image], place)
            elif self._find(self._name(image, place)) is None:
                missing.append((image, place))
            if len(missing) == at_a_time or (missing and done == len(places)):
                self._compute(missing)
                missing = []
            progress(done, len(places))

    def of(self, samples: list[Sample]) -> mx.array | None:
        """What the model is given for these samples' images, in reading order; None where there are none.

        Returns:
            Pixel values, (images, size, size, 3), features, (images, tokens, width), or what the tower has of them.
        """
        images = [(image, sample.place) for sample in samples for image in sample.images]
        if not images:
            return None
        if self.of_pixels:
            return mx.concatenate([self._pixels([image], place) for image, place in images])
        lacking = [pair for pair in dict.fromkeys(images) if self._find(self._name(*pair)) is None]
        if lacking:  # somebody emptied the folder meanwhile
            self._compute(lacking)
        found = [self._find(self._name(*pair)) for pair in images]
        return mx.stack([features for features in found if features is not None])

    def embeddings(self, given: mx.array) -> mx.array:
        """What :meth:`of` gave -> (images, tokens, text hidden size); differentiable in what is trained."""
        if self.of_pixels:
            return self._model.get_image_features(given)
        if self._to_come >= 0:
            given = self._model.vision_tower.last_stages(given, self._to_come).flatten(1, 2)
        return given if self._projects else self._model.multi_modal_projector(given)

    def _pixels(self, images: list[ImageSource], place: str) -> mx.array:
        try:
            return self._processor.preprocess(list(images), self._image_size)
        except (ValueError, OSError) as error:
            raise ValueError(f"{place}: {error}") from None

    def _compute(self, images: list[tuple[ImageSource, str]]) -> None:
        pixels = mx.concatenate([self._pixels([image], place) for image, place in images])
        tower = self._model.vision_tower
        if self._to_come >= 0:
            features = tower.first_stages(pixels, len(tower.stages) - self._to_come)
        else:
            features = tower(pixels).last_hidden_state.flatten(1, 2)
        if self._projects:
            features = self._model.multi_modal_projector(features)
        mx.eval(features)
        for (image, place), found in zip(images, features):
            self._keep(self._name(image, place), mx.contiguous(found))
        bound_cache()

    def _name(self, image: ImageSource, place: str) -> str:
        """What an image is kept under."""
        if image not in self._names:
            digest = hashlib.sha256(self._made_by.encode())
            try:
                file, _ = open_source(image)
            except (ValueError, OSError) as error:
                raise ValueError(f"{place}: {error}") from None
            with file:
                digest.update(file.read())
            self._names[image] = digest.hexdigest()[:32]
        return self._names[image]

    def _find(self, name: str) -> mx.array | None:
        if self._folder is None:
            return self._kept.get(name)
        path = self._folder / f"{name}.safetensors"
        if not path.is_file():
            return None
        try:
            return read_safetensors(path)[0].get(NAME)
        except ValueError:  # damaged: it is computed again
            return None

    def _keep(self, name: str, features: mx.array) -> None:
        if self._folder is None:
            mx.eval(features)
            self._kept[name] = features
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._folder / f"{name}.safetensors") as unfinished:
            mx.save_safetensors(str(unfinished), {NAME: features})
