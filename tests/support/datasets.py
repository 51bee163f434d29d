"""Data sets of a few small images, and readers that share no code with the package's own."""

import io
import json
import tarfile

from PIL import Image

from mlx_fastvlm.data.sinks import Destination
from mlx_fastvlm.generation.dataset import Job

KINDS = ("jsonl", "parquet", "tar")


def encoded(number, kind="PNG", size=(9, 7)):
    """An image's file; every number's pixels are its own."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 128)).save(buffer, kind)
    return buffer.getvalue()


def write_images(folder, numbers, name="{}.png"):
    """A folder, new or not, with the image of each number."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        (folder / name.format(number)).write_bytes(encoded(number))
    return folder


def write_tar(path, files):
    """A tar of (name, bytes) pairs in their order."""
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def job(sources, output, prompt="What?", **options):
    """A job; what belongs to the destination is told apart here."""
    own = ("shard", "append_as", "overwrite", "retry_errors", "records_per_file")
    destination = Destination(str(output), **{name: options.pop(name) for name in own if name in options})
    sources = sources if isinstance(sources, list) else [sources]
    return Job(sources, destination, prompt, **options)


def read_records(folder, kind, stem="out"):
    """All whole records of an output that has been finished; anything broken raises."""
    if kind == "jsonl":
        data = b"".join(file.read_bytes() for file in sorted(folder.glob(f"{stem}*.jsonl")))
        assert data.endswith(b"\n") or not data
        return [json.loads(line) for line in data.decode().split("\n") if line]
    if kind == "parquet":
        return _from_parquet(folder, stem)
    found = []
    for file in sorted(folder.glob(f"{stem}-*.tar")):
        with tarfile.open(file) as archive:
            for member in archive:
                if member.name.endswith(".caption.json"):
                    found.append(json.load(archive.extractfile(member)))
    return found


def _from_parquet(folder, stem):
    import pyarrow.parquet  # noqa: PLC0415  an extra

    rows = []
    for file in sorted(folder.glob(f"{stem}-*.parquet")):
        rows += pyarrow.parquet.read_table(file).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]
