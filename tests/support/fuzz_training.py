"""The fuzzer's targets "adapters" and "training": what strangers have fine-tuned, or give to fine-tune with."""

import contextlib
import json
import shutil
import struct
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mlx_fastvlm.checkpoints.adapters import AdapterConfig, write_adapter
from mlx_fastvlm.checkpoints.peft import write_peft
from mlx_fastvlm.config import FastVlmConfig
from mlx_fastvlm.models.lora import adapter_tensors, adapters_of, load_adapters
from mlx_fastvlm.processing.processor import FastVlmProcessor
from mlx_fastvlm.tuner import encode_all, read_conversations
from tests.support import checkpoints
from tests.support.adapters import adapted, new_model, written
from tests.support.damage import damaged, disturbed
from tests.support.datasets import encoded, write_images


class Adapters:
    """Folders of every kind, a file of one damaged. A refused one leaves the model as it was."""

    def __init__(self, folder):
        folder = Path(folder)
        base = checkpoints.write(folder / "base", "apple")
        self.target, self.seeds = folder / "adapters", {}
        for kind in ("lora", "dora"):
            model, config = adapted(base, kind)
            written(folder / kind, model, config)
            write_peft(folder / f"peft-{kind}", config, adapter_tensors(model))
        self.model = new_model(base)
        weights = dict(
            tree_flatten(self.model.language_model.layers[2].parameters(), prefix=".language_model.layers.2")
        )
        write_adapter(folder / "full", AdapterConfig("full"), weights)
        for kind in ("lora", "dora", "full", "peft-lora", "peft-dora"):
            self.seeds[kind] = {file.name: file.read_bytes() for file in (folder / kind).iterdir()}

    def make(self, rng):
        kind = rng.choice(list(self.seeds))
        name = rng.choice(sorted(self.seeds[kind]))
        data = self.seeds[kind][name]
        if rng.random() < 0.2:
            data = damaged(data, rng)
        elif name.endswith(".json"):
            data = json.dumps(disturbed(json.loads(data), rng)).encode()
        else:
            length = struct.unpack("<Q", data[:8])[0]
            header = json.dumps(disturbed(json.loads(data[8 : 8 + length]), rng)).encode()
            data = struct.pack("<Q", len(header)) + header + data[8 + length :]
        return f"{kind} {name}\n".encode() + data

    def feed(self, data):
        head, _, content = data.partition(b"\n")
        kind, name = head.decode().split()
        shutil.rmtree(self.target, ignore_errors=True)
        self.target.mkdir()
        for file, original in self.seeds[kind].items():
            (self.target / file).write_bytes(content if file == name else original)
        try:
            load_adapters(self.model, self.target)
        except (ValueError, OSError):
            assert not adapters_of(self.model), "a refused adapter was left in the model"
            raise
        mx.eval(self.model.parameters())
        plain = [(name, adapter.linear) for name, adapter in adapters_of(self.model).items()]
        self.model.update_modules(tree_unflatten(plain))


class Training:
    """Data sets in each kind of file; what is read can be encoded."""

    def __init__(self, folder):
        self.folder = write_images(Path(folder) / "data", range(3))
        checkpoints.write_tokenizer(Path(folder))
        self.processor = FastVlmProcessor.from_folder(folder, FastVlmConfig.from_dict(checkpoints.apple_config()))
        said = [{"role": "user", "content": "<image>\nWho?"}, {"role": "assistant", "content": "A fox."}]
        parts = [{"type": "image", "image": "1.png"}, {"type": "text", "text": "Who?"}]
        turns = [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "A fox."}]
        self.rows = [
            {"images": ["0.png"], "messages": said},
            {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": parts}, said[1]]},
            {"id": "1", "image": "2.png", "conversations": turns},
            {"image": "0.png", "question": "Who?", "answer": "A fox."},
            {"file_name": "1.png", "text": "A fox."},
        ]
        table = b'image,question,answer\n0.png,"Who, then?",A fox.\n1.png,What?,An owl.\n'
        self.files = {".csv": table, ".jsonl": self._lines(self.rows), ".json": json.dumps(self.rows).encode()}
        with contextlib.suppress(ImportError):
            import pyarrow.parquet  # noqa: PLC0415  an extra

            rows = [{"images": [{"bytes": encoded(i), "path": None}], "messages": said} for i in range(5)]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), self.folder / "seed", row_group_size=2)
            self.files[".parquet"] = (self.folder / "seed").read_bytes()

    @staticmethod
    def _lines(rows):
        return "\n".join(map(json.dumps, rows)).encode()

    def make(self, rng):
        if rng.random() < 0.5:
            row = disturbed(rng.choice(self.rows), rng)
            return b".jsonl\n" + self._lines([self.rows[0], row])
        kind = rng.choice(list(self.files))
        return f"{kind}\n".encode() + damaged(self.files[kind], rng)

    def feed(self, data):
        kind, _, content = data.partition(b"\n")
        path = self.folder / f"train{kind.decode()}"
        path.write_bytes(content)
        found = read_conversations(path, "train")
        for sample in encode_all(found, self.processor, max_seq_length=10**6)[0]:
            assert sample.answer_tokens > 0, "nothing to learn"
            assert len(sample.ids) < 10**5, "a row of a hundred thousand tokens"
