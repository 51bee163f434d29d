"""The fuzzer's target "shards": tar, parquet and manifest files of a data set."""

import contextlib
import json
from pathlib import Path

from mlx_fastvlm.data.sources import Dataset
from tests.support.damage import damaged
from tests.support.datasets import encoded, write_tar


class Shards:
    """Every item is an image's or an error of one line, and no key comes twice."""

    def __init__(self, folder):
        self.folder = Path(folder)
        files = [("a/1.png", encoded(1)), ("a/1.json", b"{}"), ("b" * 120 + ".png", encoded(2)), ("é.png", b"")]
        shard = write_tar(self.folder / "s.tar", [*files, *((f"{i}.png", encoded(i)) for i in range(9))])
        names = [json.dumps({"image": f"{i}.png", "prompt": "Hi", "key": i}) for i in range(9)]
        self.seeds = {".tar": shard.read_bytes(), ".jsonl": "\n".join(names).encode(), ".csv": b"image,key\na,1\n" * 9}
        with contextlib.suppress(ImportError):
            import pyarrow.parquet  # noqa: PLC0415  an extra

            table = pyarrow.table({"image": [encoded(i) for i in range(9)], "key": [str(i) for i in range(9)]})
            pyarrow.parquet.write_table(table, self.folder / "p.parquet")
            self.seeds[".parquet"] = (self.folder / "p.parquet").read_bytes()

    def make(self, rng):
        end = rng.choice(list(self.seeds))
        return end.encode() + b"\n" + damaged(self.seeds[end], rng)

    def feed(self, data):
        end, _, content = data.partition(b"\n")
        path = self.folder / f"shard{end.decode()}"
        path.write_bytes(content)
        faults, keys = [], set()
        for item in Dataset([path]):
            item.load()
            assert item.key not in keys, "a key came twice"
            assert (item.source is None) == (item.error is not None), "neither an image nor an error"
            item.key.encode()
            keys.add(item.key)
            faults += [item.error] if item.error is not None else []
        assert not any("\n" in fault for fault in faults), "an error of several lines"
        if faults:
            raise ValueError(faults[0])
