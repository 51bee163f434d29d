"""The vision tower alone: a vector for each image, and a search for the images most similar to one.

    python examples/image_encoder.py --plot nearest.png
    python examples/image_encoder.py photos --query photo.jpg --model apple/FastVLM-0.5B --plot nearest.png

FastViTHD's pooled embedding was trained to let a language model talk about an image, so near means alike in what there
is to say. Without a folder, 200 images of the demo's world are drawn. `--plot` needs matplotlib.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

from mlx_fastvlm import load, load_image  # before mlx, so that OpenBLAS is found

import mlx.core as mx  # isort: skip
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "demo"))

import scenes

NEAREST = 5


def embed(model, processor, images: list[Image.Image]) -> mx.array:
    """(images, channels), float32, each of length 1; one image at a time, so memory does not grow with them."""
    vectors = []
    for image in images:
        vector = model.vision_tower(processor.preprocess(image)).pooler_output
        mx.eval(vector)
        vectors.append(vector)
    vectors = mx.concatenate(vectors).astype(mx.float32)
    return vectors / mx.linalg.norm(vectors, axis=-1, keepdims=True)


def nearest(vectors: mx.array, query: mx.array) -> list[tuple[int, float]]:
    """The numbers of the most similar vectors with their cosine similarities, best first."""
    # What all images have in common says nothing about any of them.
    mean = vectors.mean(axis=0)
    vectors, query = vectors - mean, query - mean
    similarity = (vectors @ query) / (mx.linalg.norm(vectors, axis=-1) * mx.linalg.norm(query))
    order = mx.argsort(-similarity)[:NEAREST].tolist()
    return [(i, similarity[i].item()) for i in order]


def plot(rows: list[tuple[Image.Image, list[tuple[Image.Image, float]]]], path: Path):
    """A row for each query: the image, and the most similar ones beside it."""
    from matplotlib.figure import Figure  # noqa: PLC0415  optional

    figure = Figure(figsize=(1.5 * (NEAREST + 1), 1.7 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), NEAREST + 1, squeeze=False)
    for axes, (query, found) in zip(grid, rows):
        titles = ["query", *(f"{similarity:.2f}" for _, similarity in found)]
        for axis, image, title in zip(axes, [query, *(image for image, _ in found)], titles):
            axis.imshow(image)
            axis.set_title(title, fontsize=9)
        for axis in axes:
            axis.axis("off")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="folder of JPEG and PNG images to search")
    parser.add_argument("--query", action="append", metavar="IMAGE", help="find images similar to this one; repeatable")
    parser.add_argument("--model", default="demo", help="a folder, a hub id or demo (%(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the results; needs matplotlib")
    arguments = parser.parse_args()
    if arguments.plot and not importlib.util.find_spec("matplotlib"):
        parser.error("--plot needs matplotlib; install it with pip install matplotlib")

    if arguments.folder:
        files = sorted(file for file in arguments.folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
        images, names = [load_image(file) for file in files], [file.name for file in files]
    else:
        drawn = [scenes.make_scene(seed) for seed in scenes.HELD_OUT_SEEDS[:200]]
        images, names = (
            [scenes.draw(scene, 256) for scene in drawn],
            [scenes.describe(scene.things) for scene in drawn],
        )
    examples = Path(__file__).parent / "images"
    queries = arguments.query or [str(examples / f"shapes-{number}.png") for number in (5, 6, 8)]

    model, processor = load(arguments.model)
    vectors = embed(model, processor, images)
    print(f"{len(images)} images, {vectors.shape[1]} channels each")
    rows = []
    for query in queries:
        shown = load_image(query)
        found = nearest(vectors, embed(model, processor, [shown])[0])
        print(f"\nmost like {query}:")
        for i, similarity in found:
            print(f"  {similarity:5.2f}  {names[i]}")
        rows.append((shown, [(images[i], similarity) for i, similarity in found]))
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
