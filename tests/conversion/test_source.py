"""What is copied from a source: its own files, and nothing that a link in it leads to."""

import shutil

import pytest

from mlx_fastvlm import convert
from mlx_fastvlm.convert import main
from tests.support.paths import left


@pytest.mark.parametrize("name", ["NOTICE.key", "LICENSE", "special_tokens_map.json"])
def test_a_link_out_of_the_source_is_not_followed(checkpoint, tmp_path, name):
    source = shutil.copytree(checkpoint("apple"), tmp_path / "source")
    (tmp_path / "precious.txt").write_text("{}")
    (source / name).symlink_to("../precious.txt")
    with pytest.raises(ValueError, match=f"{name} is a link to .*precious.txt, outside its folder"):
        convert(source, tmp_path / "out", verify=False)
    assert left(tmp_path) == ["precious.txt", "source"]


def test_links_within_the_source_and_to_the_source_are_followed(checkpoint, tmp_path):
    source = shutil.copytree(checkpoint("apple"), tmp_path / "source")
    (source / "terms.txt").write_text("research only")
    (source / "LICENSE").symlink_to("terms.txt")
    (tmp_path / "link").symlink_to("source")
    convert(tmp_path / "link", tmp_path / "out", verify=False)
    assert (tmp_path / "out" / "LICENSE").read_text() == "research only"
    assert not (tmp_path / "out" / "LICENSE").is_symlink()


def test_the_hubs_cache_is_links_into_its_blobs(checkpoint, tmp_path):
    """As ``snapshot_download`` leaves it."""
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123abcd"
    shutil.copytree(checkpoint("apple"), blobs)
    (blobs / "LICENSE").write_text("research only")
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    convert(snapshot, tmp_path / "out", verify=False)
    assert (tmp_path / "out" / "LICENSE").read_text() == "research only"
    assert (tmp_path / "out" / "vocab.json").is_file()


def test_hidden_files_do_not_count(checkpoint, tmp_path):
    source = shutil.copytree(checkpoint("apple"), tmp_path / "source")
    size = (source / "model.safetensors").stat().st_size
    (source / "._model.safetensors").write_bytes(b"\x00\x05\x16\x07")
    assert convert(source, tmp_path / "out", verify=False).size_before == size


def test_the_folder_one_is_in_is_no_target(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("precious")
    for name in (".", ""):
        assert main(["--hf-path", str(checkpoint("apple")), "--mlx-path", name, "--force"]) == 1
        assert "is the folder you are in" in capsys.readouterr().err
    assert left(tmp_path) == ["mine.txt"]
    assert not list(tmp_path.parent.glob(".*replaced*"))


def test_a_source_named_in_no_utf8_is_one_line(tmp_path, capsys):
    assert main(["--hf-path", str(tmp_path / "\udcff"), "--mlx-path", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.endswith("is not valid UTF-8; rename it, or choose another one.\n")


def test_a_card_for_an_image_whose_name_is_not_utf8(checkpoint, tmp_path):
    convert(checkpoint("apple"), tmp_path / "out", verify=False, command="convert.py --golden-image \udcff")
    assert "\\udcff" in (tmp_path / "out" / "README.md").read_text()
