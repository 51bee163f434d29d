"""Captions in a Ray cluster of three nodes, one of which is killed midway, against a single run.

    python -m tests.support.ray_cluster --images 5000

The head reads, the other two hold a model each. Prints how many records there are, how many keys, how many batches were
done when the node was killed, and how many records differ from ``python -m mlx_fastvlm.caption``'s. Exit code 1 if
anything is wrong. tests/data/test_ray.py runs it with a few images.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
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


def in_a_cluster(folder):
    """The records, in any order, and how many of them were there when a node was killed."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1, resources={"mac": 1}) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, logging_level=logging.ERROR)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        files = [str(file) for file in sorted(folder.glob("*.parquet"))]
        captions = ray.data.read_parquet(files, override_num_blocks=len(files)).map_batches(
            Captioner,
            fn_constructor_kwargs={"model": "demo", **OPTIONS},
            batch_size=BATCH,
            num_cpus=1,
            resources={"mac": 1},
            concurrency=2,
        )
        records, killed = [], 0
        for row in captions.iter_rows():
            records.append(row)
            if not killed and len(records) >= BATCH:
                killed = len(records)
                cluster.remove_node(nodes[0], allow_graceful=False)
        return records, killed
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
        records, killed = in_a_cluster(folder)
    found = {row["key"]: {name: value for name, value in row.items() if value is not None} for row in records}
    different = [key for key, record in alone.items() if found.get(key) != {**record, "key": key}]
    print(
        f"{len(records)} records of {images} images, {len(found)} keys; {killed} were there when a node was killed; "
        f"{sum('error' in record for record in found.values())} errors; {len(different)} records differ from the "
        "single run's"
    )
    if different:
        print(alone[different[0]], found.get(different[0]), file=sys.stderr)
    return int(bool(different) or len(records) != images or not killed)


if __name__ == "__main__":
    sys.exit(main())
