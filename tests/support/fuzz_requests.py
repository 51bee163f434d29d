"""Bodies of requests as strangers may send them, all the way to what the worker would be handed."""

import base64
import io
import json
from pathlib import Path

from PIL import Image

import mlx_fastvlm
from mlx_fastvlm.generation.engine import Engine
from mlx_fastvlm.server.asking import prepare
from mlx_fastvlm.server.dialect import chat, completions, decisions, responses
from mlx_fastvlm.server.dialect.ask import Served
from mlx_fastvlm.server.dialect.errors import RequestError
from mlx_fastvlm.server.dialect.limits import Limits
from tests.support import small
from tests.support.damage import damaged, disturbed

SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "pattern": "[a-z]+"}, "b": {"enum": [1, None]}}}
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["a", "b"], "logit_bias": {"1": -100}, "top_k": 5}


class Requests:
    """The first byte of an input names the dialect, the rest is a body."""

    def __init__(self, folder):
        model, processor = mlx_fastvlm.load("demo")
        self.engine = Engine(model, processor)
        size = processor.image_settings.size
        self.served = Served(
            "demo", size, processor.token_bytes, processor.eos_token_ids, limits=Limits(image_root=Path(folder))
        )
        buffer = io.BytesIO()
        Image.fromarray(small.odd_image(20, 20)).save(buffer, "PNG")
        (Path(folder) / "a.png").write_bytes(buffer.getvalue())
        self.dialects = [chat, completions, responses, decisions]
        self.seeds = [*self._seeds("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())]

    def _seeds(self, uri):
        """(number of the dialect, body)."""
        image = {"type": "image_url", "image_url": {"url": uri, "detail": "low"}}
        user = {"role": "user", "content": [image, {"type": "text", "text": "What is <image>?"}]}
        said = {"role": "assistant", "content": "Red.", "refusal": None, "tool_calls": None}
        messages = [{"role": "system", "content": "Be brief."}, user, said, {"role": "user", "content": "Sure?"}]
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        format = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
        yield 0, {"model": "demo", "messages": messages, **stream, "logprobs": True, "top_logprobs": 2, **SAMPLING}
        yield 0, {"messages": [user], "response_format": format, "max_tokens": 9, "n": 2, "image_size": 64, "frames": 2}
        film = {"type": "video_url", "video_url": {"url": "a.png"}}
        yield 0, {"messages": [{"role": "user", "content": [film, {"type": "text", "text": "a"}]}], "max_frames": 2}
        yield 1, {"model": "demo", "prompt": ["Hi", "Ho"], "n": 2, "logprobs": 1, "max_tokens": 9, **SAMPLING}
        parts = [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "a.png", "detail": "auto"}]
        flat = {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}
        items = [{"type": "message", "role": "user", "content": parts}, {**said, "content": [parts[0]]}]
        yield (
            2,
            {"input": items, "instructions": "b", "text": flat, "metadata": {"a": "b"}, "include": [], "store": True},
        )
        yield 2, {"input": "Hi", "max_output_tokens": 9, "stream": True, "reasoning": None, "top_logprobs": 1}
        yield 3, {"question": "Red?", "images": [uri, {"url": "a.png"}], "choices": ["Yes", "No", "Yes."]}
        yield 3, {"messages": messages, "choices": ["a", "b"]}

    def make(self, rng):
        dialect, body = rng.choice(self.seeds)
        if rng.random() < 0.2:
            return b"%d" % dialect + damaged(json.dumps(body).encode(), rng)
        return b"%d" % dialect + json.dumps(disturbed(body, rng)).encode()

    def feed(self, data):
        dialect = self.dialects[int(data[:1])]
        try:
            ask, questions = prepare(data[1:], dialect.read, self.engine, self.served)
        except RequestError as error:
            if error.status not in (400, 404):
                raise RuntimeError(f"status {error.status} for a bad request") from error.__context__
            json.dumps(error.body, allow_nan=False).encode()
            raise ValueError(error.message) from None
        assert len(questions) == len(ask.prompts)
        dialect.Writer(ask, self.served).begin()
