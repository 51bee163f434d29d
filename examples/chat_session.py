"""Several questions about one image, in one conversation that computes nothing twice.

    python examples/chat_session.py photo.jpg "What is this?" "What colour is it?" --model apple/FastVLM-0.5B

The session keeps what the decoder has read: a follow-up question costs its own tokens only, and the image goes
through the vision tower once. For a chat in the terminal there is `python -m mlx_fastvlm.chat`.
"""

import argparse
from pathlib import Path

from mlx_fastvlm import ChatSession, load

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("image", nargs="?", default=str(Path(__file__).parent / "images" / "shapes-1.png"))
parser.add_argument(
    "questions",
    nargs="*",
    default=["What are these?", "What colour is the star?", "Is it big or small?", "What is left of the star?"],
)
parser.add_argument("--model", default="demo", help="a folder, a hub id or demo (%(default)s)")
arguments = parser.parse_args()

model, processor = load(arguments.model)
session = ChatSession(model, processor, max_tokens=100)
for number, question in enumerate(arguments.questions):
    # The image is shown with the first question; the others are about what the session has seen.
    for response in session.stream(question, arguments.image if number == 0 else None):
        if response.generation_tokens == 1:
            computed = response.prompt_tokens - response.cached_tokens
            print(f"> {question}   ({computed} of {response.prompt_tokens} prompt tokens computed)")
        print(response.text, end="", flush=True)
    print()
