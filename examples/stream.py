"""Print an answer as it is generated, and how fast that was.

    python examples/stream.py photo.jpg --model apple/FastVLM-0.5B --prompt "Describe it in detail."

Each response carries a piece of text and the statistics so far; the last one's are those of the whole answer.
"""

import argparse
import sys
from pathlib import Path

from mlx_fastvlm import load, stream_generate

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("image", nargs="?", default=str(Path(__file__).parent / "images" / "shapes-1.png"))
parser.add_argument("--model", default="demo", help="a folder, a hub id or demo (%(default)s)")
parser.add_argument("--prompt", default="Describe the image.", help="the question (%(default)s)")
parser.add_argument("--max-tokens", type=int, default=256, help="stop after this many tokens (%(default)s)")
arguments = parser.parse_args()

model, processor = load(arguments.model)
for response in stream_generate(model, processor, arguments.prompt, arguments.image, max_tokens=arguments.max_tokens):
    print(response.text, end="", flush=True)
print()
print(
    f"{response.prompt_tokens} prompt tokens, the first answer after {response.time_to_first_token:.2f} s, "
    f"then {response.generation_tps:.1f} tokens/s, {response.peak_memory:.2f} GB at most; "
    # "stop": the model was done. "length": --max-tokens was.
    f"ended by {response.finish_reason}",
    file=sys.stderr,
)
