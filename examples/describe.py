"""Ask one question about one image: the smallest example.

python examples/describe.py
python examples/describe.py photo.jpg --model apple/FastVLM-0.5B --prompt "What is the weather like?"
"""

import argparse
from pathlib import Path

from mlx_fastvlm import generate, load

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("image", nargs="?", default=str(Path(__file__).parent / "images" / "shapes-1.png"))
parser.add_argument("--model", default="demo", help="a folder, a hub id or demo (%(default)s)")
parser.add_argument("--prompt", default="What are these?", help="the question (%(default)s)")
arguments = parser.parse_args()

model, processor = load(arguments.model)
print(generate(model, processor, arguments.prompt, arguments.image))
