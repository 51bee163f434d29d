"""The fuzzer's target "shards": tar, parquet and manifest files of a data set."""

import contextlib
import json
import tarfile
import zlib
from pathlib import Path

from mlx_fastvlm.data.sinks import Destination, open_records
from mlx_fastvlm.data.sources import Dataset
from tests.support.damage import damaged
from tests.support.datasets import encoded, write_tar

NAMES = [
    *(
        "1.png",
        "1.json",
        "a/1.png",
        "a/../1.png",
        "../1.png",
        "/etc/1.png",
        "1.tar",
        "1.png/",
        ".png",
        "",
        ".",
        "//.png",
    ),
    *("é.png", "\udcff.png", "a\0b.png", "a\nb.png", "x" * 300 + ".png", "1.PNG", "1.a.b.png", "1.caption.json"),
]
FORMATS = [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
KINDS = [tarfile.REGTYPE] * 8 + [
    *(tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE),
    *(tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, b"?", b"\xff"),
]
PAX = [
    b"9 path=a\n",
    b"13 path=../x\n",
    b"9 size=9\n",
    b"12 size=-99\n",
    b"27 size=999999999999999999\n",
    b"99 path=a\n",
]
PAX += [b"0 =\n", b"5 a=b", b"path=a\n", b"\xb2 path=a\n", b"22 GNU.sparse.major=1\n", b"", b"9" * 5000 + b" a=b\n"]


def _odd_member(rng):
    """A file of a tar whose checksum is right, and perhaps nothing else."""
    header = tarfile.TarInfo(rng.choice(NAMES))
    header.type = rng.choice(KINDS)
    data = rng.choice([encoded(rng.randrange(9)), b"", b"x" * 600, rng.choice(PAX) + rng.choice(PAX)])
    lies = [-1, 1, 511, 512, 10_000, 2**33 - 1, 2**62]
    header.size = len(data) if rng.random() < 0.8 else max(0, len(data) + rng.choice(lies))
    header.linkname = rng.choice(["", "1.png", "/etc/passwd"])
    return header.tobuf(rng.choice(FORMATS), "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)


class Shards:
    """Every item is an image's or an error of one line, and no key comes twice; what is written of some into another
    tar has names that lead nowhere, and is found again."""

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
        end = rng.choice([*self.seeds, "odd"])
        if end == "odd":
            return b".tar\n" + b"".join(_odd_member(rng) for _ in range(rng.randrange(1, 8))) + bytes(1024)
        return end.encode() + b"\n" + damaged(self.seeds[end], rng)

    def feed(self, data):
        end, _, content = data.partition(b"\n")
        path = self.folder / f"shard{end.decode()}"
        path.write_bytes(content)
        faults, keys, items = [], set(), []
        for item in Dataset([path]):
            item.load()
            assert item.key not in keys, "a key came twice"
            assert (item.source is None) == (item.error is not None), "neither an image nor an error"
            item.key.encode()
            keys.add(item.key)
            faults += [item.error] if item.error is not None else []
            items.append(item)
        assert not any("\n" in fault for fault in faults), "an error of several lines"
        if end == b".tar" and zlib.crc32(content) % 4 == 0:
            self._write(items)
        if faults:
            raise ValueError(faults[0])

    def _write(self, items):
        output = self.folder / "out.tar"
        for _ in range(2):  # what was written is found again
            with open_records(Destination(str(output), records_per_file=3), [], {"model": "m"}) as records:
                for item in items:
                    if item.key not in records.done:
                        records.write(item, {"key": item.key, "text": "x", "model": "m", "prompt": "p"})
        found = []
        for part in self.folder.glob("out-*.tar"):
            with tarfile.open(part) as archive:
                for member in archive:
                    assert member.isfile(), "no plain file"
                    assert not {"", ".", ".."} & set(member.name.split("/")), "a name that leads somewhere"
                    if member.name.endswith(".caption.json"):
                        found.append(json.load(archive.extractfile(member))["key"])
            part.unlink()
        assert sorted(found) == sorted(item.key for item in items), "records are lost"
