"""Several sources as one: keys once, kinds told apart, shards that make up the whole."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_fastvlm.data.shards import Shard, read_shard, shard_of_launch
from mlx_fastvlm.data.sources import Dataset
from mlx_fastvlm.errors import UsageError
from tests.support.datasets import encoded, write_images, write_tar

ALL = Shard()


@pytest.fixture
def mixed(tmp_path):
    """A folder, two shards and a manifest."""
    folder = write_images(tmp_path / "photos", range(5))
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", [(f"{i}.png", encoded(i)) for i in range(4)])
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"image": f"photos/{i}.png"}) + "\n" for i in range(3)))
    return [folder, f"{tmp_path}/*.tar", tmp_path / "m.jsonl"]


def keys(sources, shard=ALL):
    return [item.key for item in Dataset(sources, shard)]


def test_every_key_once_and_in_order(mixed):
    expected = [f"{i}.png" for i in range(5)]
    expected += [f"{shard}.tar/{i}" for shard in range(2) for i in range(4)]
    expected += [f"photos/{i}.png" for i in range(3)]
    assert keys(mixed) == expected


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_make_up_the_whole(mixed, count):
    parts = [keys(mixed, Shard(index, count)) for index in range(count)]
    assert sorted(key for part in parts for key in part) == sorted(keys(mixed))


@given(st.text(), st.integers(1, 50))
def test_a_key_is_in_one_shard_whatever_else_there_is(key, count):
    assert sum(Shard(index, count).has(key.encode("utf-8", "replace").decode()) for index in range(count)) == 1


def test_the_second_of_two_with_a_key_is_told(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.png", encoded(1)), ("b.png", encoded(2)), ("a.png", encoded(3))])
    dataset = Dataset([path])
    items = list(dataset)
    assert [item.key for item in items] == ["s.tar/a", "s.tar/b"]
    assert (dataset.duplicates, dataset.first_duplicate) == (1, "s.tar/a")


def test_how_many_there_are_is_known_better_and_better(mixed):
    dataset = Dataset(mixed)
    seen = []
    for _ in dataset:
        seen.append(dataset.estimate())
    assert seen[0] is None
    assert dataset.estimate() == len(seen)


def test_kinds_that_are_not_read(tmp_path):
    for name, words in (("a.tar.gz", "unpack it"), ("a.zip", "unpack it"), ("a.txt", "kind of file that is read")):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UsageError, match=words):
            Dataset([tmp_path / name])
    for source, words in (
        (tmp_path / "none", "no such file"),
        (tmp_path, "has no images"),
        (f"{tmp_path}/*.x", "no file"),
    ):
        with pytest.raises(FileNotFoundError, match=words):
            Dataset([source])
    with pytest.raises(UsageError, match="no source"):
        Dataset([])


def test_names_of_parts():
    assert Shard(0, 8).part("a/captions.jsonl") == "a/captions-0of8.jsonl"
    assert Shard().part("captions.jsonl") == "captions.jsonl"
    assert Shard(0, 8).part("-") == "-"
    assert read_shard("3/8") == Shard(3, 8)
    for wrong in ("8/8", "1", "a/b", "-1/2", "0/0", "1/2/3"):
        with pytest.raises(UsageError, match="must look like 0/8"):
            read_shard(wrong)


def test_ranks_of_mlx_launch(monkeypatch, tmp_path):
    for name in ("MLX_RANK", "MLX_WORLD_SIZE", "MLX_HOSTFILE", "MLX_IBV_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    assert shard_of_launch() == Shard()
    monkeypatch.setenv("MLX_RANK", "1")
    with pytest.raises(UsageError, match="how many ranks"):
        shard_of_launch()
    (tmp_path / "hosts.json").write_text('[["127.0.0.1:1"], ["127.0.0.1:2"], ["127.0.0.1:3"]]')
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts.json"))
    assert shard_of_launch() == Shard(1, 3)
    monkeypatch.setenv("MLX_WORLD_SIZE", "2")
    assert shard_of_launch() == Shard(1, 2)
