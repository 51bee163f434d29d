"""POST /v1/completions, for old clients: a prompt is asked as a user's message, since the model only chats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .ask import Ask
from .fields import Fields
from .messages import Conversation, user_says
from .options import (
    BOOKKEEPING,
    COUNT,
    EXTENSIONS,
    LENGTH,
    MODEL,
    STREAM,
    STREAM_OPTIONS,
    TOP_LOGPROBS,
    check_model,
    read_max_tokens,
    read_n,
    read_stream,
)
from .sampling import SAMPLING, read_sampling
from .shapes import TEXT, a_list, either, given
from .table import Honoured, Refused, Table, check_table, schema_of
from .told import Answers

if TYPE_CHECKING:
    from ...generation.answer import GenerationResponse
    from .ask import Chunk, Served
    from .errors import RequestError
    from .logprobs import Scored

# What is done about each field of openai's CompletionCreateParams.
FIELDS: Table = {
    "prompt": Honoured(
        "a string, or several; each becomes a user message in the chat template",
        given(either(TEXT.schema, a_list(TEXT.schema, 1))),
    ),
    "model": MODEL,
    "max_tokens": Honoured("stop after this many tokens; the default is that of chat, not OpenAI's 16", LENGTH),
    "n": Honoured("this many answers to each prompt", COUNT),
    "logprobs": Honoured("0 to 20: this many of the likeliest tokens, beside the chosen one", TOP_LOGPROBS),
    "stream": STREAM,
    "stream_options": Honoured("include_usage; include_obfuscation pads nothing here", STREAM_OPTIONS),
    "best_of": Refused("answers are not ranked; send n.", (1,)),
    "echo": Refused("prompts are not repeated.", (False,)),
    "suffix": Refused("the model writes no text between others.", ("",)),
    "response_format": Refused("ask /v1/chat/completions for JSON.", ({"type": "text"},)),
    "images": Refused("ask /v1/chat/completions.", ([],)),
    "messages": Refused("ask /v1/chat/completions."),
    **SAMPLING,
    **EXTENSIONS,
    **BOOKKEEPING,
}
BODY = schema_of(FIELDS, "prompt")


def read(body: dict[str, Any], served: Served) -> Ask:
    """A request's JSON object -> what it asks; ``RequestError`` for what can't be."""
    fields = Fields(body)
    check_table(fields, FIELDS)
    check_model(fields, served)
    prompts = _read_prompts(fields, served)
    stream, include_usage = read_stream(fields)
    logprobs = fields.whole("logprobs", 0, 20)
    options = {
        "max_tokens": read_max_tokens(fields, served, "max_tokens"),
        **read_sampling(fields),
        **({} if logprobs is None else {"logprobs": True, "top_logprobs": logprobs}),
        **Conversation(served).options(fields),
    }
    first, *others = map(user_says, prompts)
    n = read_n(fields, served, len(prompts))
    return Ask(first, options, tuple(others), n, stream, include_usage)


def _read_prompts(fields: Fields, served: Served) -> list[str]:
    prompt = fields.needed("prompt", fields.get("prompt"))
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], str):
        fields.refuse("prompt", "prompt must hold strings; token ids are not read here.")
    prompts = fields.texts("prompt", served.limits.max_n)
    if not prompts:
        fields.refuse("prompt", "prompt is an empty list; give a string.")
    return prompts


class Writer:
    """text_completion, streamed or not."""

    done = True

    def __init__(self, ask: Ask, served: Served) -> None:
        self._ask = ask
        self._answers = Answers(ask, served, "cmpl")
        self._offsets = [0] * len(self._answers.all)  # characters of tokens so far

    def begin(self) -> list[Chunk]:
        return []

    def piece(self, index: int, response: GenerationResponse) -> list[Chunk]:
        chunks = []
        scored = self._answers.all[index].add(response)
        if response.text or scored:
            chunks.append(self._chunk(index, response.text, scored))
        if response.finish_reason is not None:
            chunks.append(self._chunk(index, "", [], response.finish_reason))
        return chunks

    def end(self) -> list[Chunk]:
        return [{**self._body([]), "usage": self._answers.usage()}] if self._ask.include_usage else []

    def fail(self, error: RequestError) -> list[Chunk]:
        return [error.body]

    def whole(self) -> dict[str, Any]:
        choices = [
            self._choice(index, answer.text, self._logprobs(answer.scored, 0), answer.finish_reason)
            for index, answer in enumerate(self._answers.all)
        ]
        return {**self._body(choices), "usage": self._answers.usage()}

    def _chunk(self, index: int, text: str, scored: list[Scored], finish_reason: str | None = None) -> Chunk:
        logprobs = self._logprobs(scored, self._offsets[index]) if scored else None
        self._offsets[index] += sum(len(one.text) for one in scored)
        usage = {"usage": None} if self._ask.include_usage else {}
        return {**self._body([self._choice(index, text, logprobs, finish_reason)]), **usage}

    @staticmethod
    def _choice(index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _body(self, choices: list[Any]) -> dict[str, Any]:
        answers = self._answers
        return {
            "id": answers.id,
            "object": "text_completion",
            "created": answers.created,
            "model": answers.model,
            "choices": choices,
        }

    def _logprobs(self, scored: list[Scored], offset: int) -> dict[str, Any] | None:
        """The old shape: a list of each kind of value."""
        if "logprobs" not in self._ask.options:
            return None
        offsets = []
        for one in scored:
            offsets.append(offset)
            offset += len(one.text)
        likeliest = [{other.text: other.logprob for other in one.likeliest} for one in scored]
        return {
            "tokens": [one.text for one in scored],
            "token_logprobs": [one.logprob for one in scored],
            "top_logprobs": likeliest if self._ask.options["top_logprobs"] else None,
            "text_offset": offsets,
        }
