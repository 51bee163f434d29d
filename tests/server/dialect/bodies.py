"""Request bodies, a server that they are for, and responses of an engine that never ran."""

import base64
import dataclasses
import io
import itertools

import pytest
from PIL import Image

from mlx_fastvlm.generation.answer import Alternative, GenerationResponse
from mlx_fastvlm.server.dialect import chat, completions, decisions, responses
from mlx_fastvlm.server.dialect.ask import Served
from mlx_fastvlm.server.dialect.errors import RequestError

# Tokens of a vocabulary in which each is a word; the last ends an answer.
WORDS = [b"A", b" red", b" circle", b".", b" \xe2\x98", b"\x83", b" STOP", b"ping", b""]
END = len(WORDS) - 1

SERVED = Served("demo", 1024, lambda id: WORDS[id], frozenset({END}), aliases=("fastvlm",), created=1_700_000_000)


def served(**changes):
    """The same with other limits, or other attributes."""
    own = {name: changes.pop(name) for name in list(changes) if hasattr(SERVED, name)}
    return dataclasses.replace(SERVED, **own, limits=dataclasses.replace(SERVED.limits, **changes))


def png(size=(8, 8), colour="red"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def data_uri(data=None):
    return "data:image/png;base64," + base64.b64encode(png() if data is None else data).decode()


def says(content="Hi", **fields):
    """A chat body with one message."""
    return {"messages": [{"role": "user", "content": content}], **fields}


def image_part(url=None, **fields):
    return {"type": "image_url", "image_url": {"url": data_uri() if url is None else url, **fields}}


# A body of each dialect that asks for nothing special.
PLAIN = {
    chat: says(),
    completions: {"prompt": "Hi"},
    responses: {"input": "Hi"},
    decisions: {"question": "Is it red?", "choices": ["Yes", "No"]},
}
DIALECTS = list(PLAIN)


def name_of(dialect):
    return dialect.__name__.rpartition(".")[2]


def refusal(read, body, to=SERVED, param=None):
    """The error that a body is answered with."""
    with pytest.raises(RequestError) as raised:
        read(body, to)
    error = raised.value
    assert error.message.isprintable()
    assert error.message[-1] in ".;,"
    assert param is None or error.param == param, error.param
    return error


def answer(text, finish_reason="stop", *, scored=0, prompt_tokens=7, cached_tokens=0):
    """The responses of an answer that has these words of ``WORDS``, as an engine gives them."""
    tokens = [WORDS.index(word.encode() if isinstance(word, str) else word) for word in text]
    data, shown, made = b"", 0, []
    if finish_reason == "stop":
        tokens.append(END)
    for count, token in enumerate(tokens, 1):
        data += WORDS[token]
        ready = data.decode(errors="ignore")
        last = count == len(tokens)
        made.append(
            GenerationResponse(
                text=ready[shown:],
                token=token,
                finish_reason=finish_reason if last else None,
                prompt_tokens=prompt_tokens,
                cached_tokens=cached_tokens,
                prompt_tps=1.0,
                generation_tokens=count,
                generation_tps=1.0,
                time_to_first_token=0.1,
                peak_memory=0.1,
                logprob=-0.25 if scored else None,
                top_logprobs=[Alternative(id, "?", -0.25 - id) for id in range(scored - 1)] if scored > 1 else None,
            )
        )
        shown = len(ready)
    return made


def write(dialect, body, *answers, to=SERVED):
    """A writer that was given the answers' responses in turns, and the chunks of a stream of them."""
    ask = dialect.read(body, to)
    writer = dialect.Writer(ask, to)
    chunks = [*writer.begin()]
    for step in itertools.zip_longest(*answers):
        for index, response in enumerate(step):
            if response is not None:
                chunks += writer.piece(index, response)
    return writer, [*chunks, *writer.end()]
