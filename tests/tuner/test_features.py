"""Images' features for training: those of the model, computed once, and never another's."""

import mlx.core as mx
import pytest
from PIL import Image

from mlx_fastvlm import load
from mlx_fastvlm.tuner import AdapterConfig, TrainingOptions
from mlx_fastvlm.tuner.features import ImageFeatures
from mlx_fastvlm.tuner.ranks import Ranks
from mlx_fastvlm.tuner.trainer import prepare_model
from tests.support.training import samples


def prepared(checkpoint, **options):
    model, processor = load(checkpoint, dtype="float32")
    prepare_model(model, TrainingOptions(**options))
    return model, processor


def count_images(model, monkeypatch):
    """How many images go through the tower from now on."""
    seen = batches(model, monkeypatch)
    return lambda: sum(seen)


def batches(model, monkeypatch):
    """A list to which the size of each batch is added that goes through the tower from now on."""
    seen, run = [], type(model.vision_tower).__call__
    monkeypatch.setattr(type(model.vision_tower), "__call__", lambda *a, **k: seen.append(len(a[1])) or run(*a, **k))
    return seen


PARTS = {
    "decoder": {},
    "projector": {"train_projector": True},
    "tower": {"train_projector": True, "train_vision": True},
    "last stages": {"train_vision": True, "vision_stages": 2},
    "last layer": {"train_vision": True, "vision_stages": 0, "adapters": AdapterConfig("full", num_layers=0)},
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("on_disk", [False, True])
def test_they_are_the_models(checkpoint, tmp_path, part, on_disk):
    model, processor = prepared(checkpoint("apple"), **PARTS[part])
    data = samples(processor, 3)
    features = ImageFeatures(model, processor, folder=tmp_path if on_disk else None)
    features.prepare(data)
    expected = model.get_image_features(processor.preprocess([image for sample in data for image in sample.images]))
    found = features.embeddings(features.of(data))
    assert found.shape == expected.shape == (3, 4, 64)
    assert mx.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert len(list(tmp_path.iterdir())) == (3 if on_disk and part != "tower" else 0)


@pytest.mark.parametrize("on_disk", [False, True])
def test_each_image_is_encoded_once(checkpoint, tmp_path, monkeypatch, on_disk):
    model, processor = prepared(checkpoint("apple"))
    data = samples(processor, 6)
    encoded = count_images(model, monkeypatch)
    folder = tmp_path if on_disk else None
    features, told = ImageFeatures(model, processor, folder=folder), []
    features.prepare([*data, *data], lambda done, total: told.append((done, total)))
    assert told == [(i, 6) for i in range(1, 7)]
    for _ in range(3):
        mx.eval(features.of(data[::-1]))
    assert encoded() == 6
    ImageFeatures(model, processor, folder=folder).prepare(data)
    assert encoded() == (6 if on_disk else 12)


@pytest.mark.parametrize(("pixels", "sizes"), [(4 * 64**2, [4, 2]), (1, [1] * 6), (2**40, [6])])
def test_few_pixels_at_a_time_go_through_the_tower(checkpoint, monkeypatch, pixels, sizes):
    model, processor = prepared(checkpoint("apple"))
    monkeypatch.setattr("mlx_fastvlm.tuner.features.AT_A_TIME", pixels * (processor.check_image_size(None) // 64) ** 2)
    seen = batches(model, monkeypatch)
    ImageFeatures(model, processor).prepare(samples(processor, 6))
    assert seen == sizes


def test_processes_share_the_images_not_the_rows(checkpoint, tmp_path, monkeypatch):
    """Where neighbouring rows ask about the same image, each image goes through one process's tower only."""
    model, processor = prepared(checkpoint("apple"))
    data = [sample for sample in samples(processor, 6) for _ in range(2)]
    encoded = count_images(model, monkeypatch)
    for rank in range(2):
        ranks = Ranks()
        ranks.rank, ranks.count = rank, 2
        ImageFeatures(model, processor, folder=tmp_path).prepare(data, ranks=ranks)
        assert encoded() == 3 * (rank + 1)
    assert len(list(tmp_path.iterdir())) == 6


def test_others_are_not_taken(checkpoint, tmp_path, monkeypatch):
    """Of other weights in front, another size, another image of the same name."""
    model, processor = prepared(checkpoint("apple"))
    (sample,) = samples(processor, 1)
    sample = type(sample)(sample.ids, sample.learnt, (tmp_path / "a.png",), sample.place)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    encoded = count_images(model, monkeypatch)
    folder = tmp_path / "features"

    def encode(expected, model=model, image_size=None):
        ImageFeatures(model, processor, image_size, folder).prepare([sample])
        assert encoded() == expected

    encode(1)
    encode(1)
    encode(2, image_size=192)
    encode(3, model=prepared(checkpoint("apple"), train_projector=True)[0])
    model.vision_tower.stem.conv.weight *= 1.01
    encode(4)
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "a.png")
    encode(5)
    encode(5)


def test_a_towers_first_stages_run_once(checkpoint, tmp_path):
    """And what they make is not taken for the whole tower's, nor for that of more of them."""
    data = None
    for count, stages in enumerate((1, 2, 3), 1):
        model, processor = prepared(checkpoint("apple"), train_vision=True, vision_stages=stages)
        data = data or samples(processor, 2)
        features = ImageFeatures(model, processor, folder=tmp_path)
        features.prepare(data)
        assert len(list(tmp_path.iterdir())) == 2 * count
        model.vision_tower.stem = None  # what is frozen is not needed any more
        assert features.embeddings(features.of(data)).shape == (2, 4, 64)


def test_the_decoder_is_not_in_the_key(checkpoint, tmp_path, monkeypatch):
    """Several trainings share a folder."""
    model, processor = prepared(checkpoint("apple"))
    data = samples(processor, 2)
    ImageFeatures(model, processor, folder=tmp_path).prepare(data)
    other, _ = prepared(checkpoint("apple"), adapters=AdapterConfig("dora", rank=2))
    encoded = count_images(other, monkeypatch)
    ImageFeatures(other, processor, folder=tmp_path).prepare(data)
    assert encoded() == 0


def test_damaged_and_lost_files_are_computed_again(checkpoint, tmp_path):
    model, processor = prepared(checkpoint("apple"))
    data = samples(processor, 2)
    features = ImageFeatures(model, processor, folder=tmp_path)
    features.prepare(data)
    expected = features.of(data)
    mx.eval(expected)
    first, second = sorted(tmp_path.iterdir())
    first.write_bytes(first.read_bytes()[:-20])
    second.unlink()
    assert mx.array_equal(features.of(data), expected)


def test_an_image_that_breaks_off_is_named(checkpoint, tmp_path):
    """Its beginning is fine; it is found before anything is trained, also where the tower learns."""
    model, processor = prepared(checkpoint("apple"))
    (sample,) = samples(processor, 1)
    whole = sample.images[0].read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    sample = type(sample)(sample.ids, sample.learnt, (tmp_path / "a.png",), "train.jsonl, row 7")
    for options in ({}, {"train_vision": True}):
        model, processor = prepared(checkpoint("apple"), **options)
        with pytest.raises(ValueError, match=r"^train\.jsonl, row 7: .*a\.png"):
            ImageFeatures(model, processor).prepare([sample])
