"""Caption parquet files or tar shards on a Ray cluster, into parquet files.

    pip install "mlx-fastvlm[cpu,ray]"
    python examples/captions_ray.py 'shards/*.parquet' captions
    python examples/captions_ray.py 'shards/*.tar' captions --model apple/FastVLM-0.5B --resource mac

Without --address it starts Ray on this machine. With --resource, only nodes that were started with it get a model:
``ray start --address=HEAD:6379 --resources='{"mac": 1}'``. Work that was lost with a node is done again by the others.
"""

import argparse
import glob

import ray

from mlx_fastvlm.data.ray import Captioner


def read(pattern: str) -> "ray.data.Dataset":
    files = sorted(glob.glob(pattern))
    if not files:
        raise SystemExit(f"{pattern} names no file")
    if files[0].endswith(".tar"):
        return ray.data.read_webdataset(files, decoder=False)
    return ray.data.read_parquet(files)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", help="a pattern of parquet files or tar shards")
    parser.add_argument("output", help="a folder for parquet files that all nodes can write to")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--prompt", default="Describe the image.")
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--address", help="address of a running cluster")
    parser.add_argument("--nodes", type=int, default=1, help="models to run at once")
    parser.add_argument("--resource", help="resource that a node must have, such as mac")
    args = parser.parse_args()

    ray.init(address=args.address)
    # A block is one node's work, and done again where that is lost; of small images Ray's own hold thousands.
    captions = (
        read(args.source)
        .repartition(target_num_rows_per_block=256)
        .map_batches(
            Captioner,
            fn_constructor_kwargs={"model": args.model, "prompt": args.prompt, "max_tokens": args.max_tokens},
            batch_size=64,
            num_cpus=1,
            concurrency=args.nodes,
            **({"resources": {args.resource: 1}} if args.resource else {}),
        )
    )
    captions.write_parquet(args.output)
    ray.shutdown()


if __name__ == "__main__":
    main()
