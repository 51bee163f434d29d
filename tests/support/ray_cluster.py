"""Captions in a Ray cluster of three nodes, one of which is killed midway, against a single run.

    python -m tests.support.ray_cluster --images 5000

The head reads, the other two hold a model each. One of these is killed when a third is done and it has a batch in
hand. Prints how many records there are, how many keys, what the node was at, how many batches were asked again, and
how many records differ from ``python -m mlx_fastvlm.caption``'s. Exit code 1 if anything is wrong, or nothing was lost.
tests/data/test_ray.py runs it with a few images.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # half a minute is not enough on a busy machine

import pyarrow
import pyarrow.parquet
import ray
from ray.cluster_utils import Cluster

from mlx_fastvlm.caption import main as caption
from mlx_fastvlm.data.ray import Captioner
from tests.support.datasets import encoded

BATCH = 16
OPTIONS = {"max_tokens": 4, "image_size": 64}


def write_parts(folder, images, parts=10):
    for part in range(parts):
        numbers = range(images * part // parts, images * (part + 1) // parts)
        table = pyarrow.table({"key": [f"{i:06}" for i in numbers], "image": [_image(i) for i in numbers]})
        pyarrow.parquet.write_table(table, folder / f"{part:03}.parquet")


def _image(number):
    return b"broken" if number % 50 == 7 else encoded(number)


def single_run(folder):
    output = folder / "single.jsonl"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    code = caption([f"{folder}/*.parquet", "--output", str(output), "--model", "demo", "--quiet", *flags])
    assert code == 3, code  # some are broken
    records = map(json.loads, output.read_text().splitlines())
    return {record["key"].rpartition("/")[2]: record for record in records}


@dataclass
class Loss:
    """Batches that the killed node had done, and had in hand; batches of any that were asked again; nodes at work."""

    done: int
    in_hand: int
    again: int
    nodes: int


class Watched(Captioner):
    """Notes in a folder which node begins and ends which batch."""

    def __init__(self, journal, **options):
        super().__init__(**options)
        self._journal, self._node = Path(journal), ray.get_runtime_context().get_node_id()

    def __call__(self, batch):
        note = self._journal / f"{self._node}.{batch['key'][0]}"
        with note.open("a") as file:
            file.write("begun\n")
            file.flush()
            table = super().__call__(batch)
            file.write("done\n")
        return table


def batches(journal):
    """Of each batch that a node has begun: node, first key, whether it was done, and how often it was begun there."""
    notes = [(file.name.split("."), file.read_text()) for file in journal.iterdir()]
    return [(node, key, text.endswith("done\n"), text.count("begun")) for (node, key), text in notes]


def kill_one_at_work(cluster, nodes, journal, killed, after):
    """In a thread: a node that has a batch in hand when so many are done is gone."""
    while True:
        found = batches(journal)
        for node in nodes:
            done = [done for name, _, done, _ in found if name == node.node_id]
            if sum(done for *_, done, _ in found) >= after and done.count(True) and done.count(False):
                killed += [done.count(True), done.count(False)]
                cluster.remove_node(node, allow_graceful=False)
                return
        time.sleep(0.005)


def in_a_cluster(folder, images):
    """The records, in any order, and what was lost with a node that was killed when a third was done."""
    journal = folder / "journal"
    journal.mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1, resources={"mac": 1}) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, logging_level=logging.ERROR)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        files = [str(file) for file in sorted(folder.glob("*.parquet"))]
        # Ray puts small files together, and one block is one actor's work.
        blocks = ray.data.read_parquet(files).repartition(target_num_rows_per_block=2 * BATCH)
        captions = blocks.map_batches(
            Watched,
            fn_constructor_kwargs={"journal": str(journal), "model": "demo", **OPTIONS},
            batch_size=BATCH,
            num_cpus=1,
            resources={"mac": 1},
            concurrency=2,
        )
        killed = []
        arguments = (cluster, nodes, journal, killed, images // BATCH // 3)
        threading.Thread(target=kill_one_at_work, args=arguments, daemon=True).start()
        records = list(captions.iter_rows())
        found = batches(journal)
        begun = Counter()
        for _, key, _, times in found:
            begun[key] += times
        nodes_at_work = len({node for node, *_ in found})
        return records, Loss(*(killed or (0, 0)), sum(times > 1 for times in begun.values()), nodes_at_work)
    finally:
        ray.shutdown()
        cluster.shutdown()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    images = parser.parse_args().images
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_parts(folder, images)
        alone = single_run(folder)
        records, loss = in_a_cluster(folder, images)
    found = {row["key"]: {name: value for name, value in row.items() if value is not None} for row in records}
    different = [key for key, record in alone.items() if found.get(key) != {**record, "key": key}]
    print(
        f"{len(records)} records of {images} images, {len(found)} keys; {loss.nodes} nodes at work, one killed after "
        f"{loss.done} batches with {loss.in_hand} in hand, {loss.again} batches asked again; "
        f"{sum('error' in record for record in found.values())} errors; {len(different)} records differ from the "
        "single run's"
    )
    if different:
        print(alone[different[0]], found.get(different[0]), file=sys.stderr)
    return int(bool(different) or len(records) != images or not loss.in_hand or not loss.again)


if __name__ == "__main__":
    sys.exit(main())
