"""POST /v1/decisions, this server's own: which of given answers, and how likely each is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import chat
from .ask import Ask
from .fields import Fields
from .logprobs import LEAST
from .messages import ADDRESS, Conversation, Part, said
from .options import BOOKKEEPING, EXTENSIONS, MODEL, check_model
from .sampling import SAMPLING
from .shapes import TEXT, a_list, given
from .table import Honoured, Ignored, Refused, Table, check_table, schema_of
from .told import Answers

if TYPE_CHECKING:
    from ...generation.answer import GenerationResponse
    from ...generation.choices import Decision
    from .ask import Chunk, Served
    from .errors import RequestError

MAX_CHOICES, MAX_CHOICE_LENGTH = 256, 500
NO_SAMPLING = "a decision samples nothing."

CHOICES = {
    "type": "array",
    "items": {"type": "string", "minLength": 1, "maxLength": MAX_CHOICE_LENGTH},
    "minItems": 2,
    "maxItems": MAX_CHOICES,
    "uniqueItems": True,
}
HARMLESS: dict[str, tuple[Any, ...]] = {"temperature": (0, 0.0), "stop": ([],)}
FIELDS: Table = {
    "choices": Honoured("2 to 256 answers to choose from, spelled as the model would begin its own", given(CHOICES)),
    "question": Honoured("a text; send this or messages", TEXT),
    "images": Honoured(
        "before the question: addresses, or objects of url and detail, as image_url in chat", given(a_list(ADDRESS))
    ),
    "image": Honoured("one image, given the same way", given(ADDRESS)),
    "messages": Honoured("as in chat, instead of question and images", given(chat.MESSAGES)),
    "model": MODEL,
    **{name: Refused(NO_SAMPLING, HARMLESS.get(name, ())) for name in SAMPLING},
    "seed": Ignored("a decision involves no chance"),
    "max_tokens": Refused(NO_SAMPLING),
    "max_completion_tokens": Refused(NO_SAMPLING),
    "stream": Refused("a decision comes at once.", (False,)),
    "n": Refused("one is enough, since every decision is the same.", (1,)),
    "response_format": Refused("the answer is one of the choices.", ({"type": "text"},)),
    "tools": Refused("the model calls no tools.", ([],)),
    **EXTENSIONS,
    **BOOKKEEPING,
}
BODY = schema_of(FIELDS, "choices")


def read(body: dict[str, Any], served: Served) -> Ask:
    """A request's JSON object -> what it asks; ``RequestError`` for what can't be."""
    fields = Fields(body)
    check_table(fields, FIELDS)
    check_model(fields, served)
    conversation = Conversation(served)
    question = fields.text("question")
    if question is None:
        for name in ("image", "images"):
            if fields.get(name) is not None:
                fields.refuse(name, f"{name} goes with question; in messages images are parts.")
        if not fields.needed("messages", fields.items("messages")):
            fields.refuse("messages", "messages is empty; give at least one, or a question.")
        conversation.read(fields, "messages", chat.read_part)
    elif fields.get("messages") is not None:
        fields.refuse("question", "question and messages are both given; give one of them.")
    else:
        conversation.say("user", [*_read_images(fields, conversation), said(question)])
    choices = _read_choices(fields)
    return Ask(conversation.messages, conversation.options(fields), choices=choices)


def _read_images(fields: Fields, conversation: Conversation) -> list[Part]:
    single, several = fields.get("image"), fields.items("images") or []
    if single is not None and several:
        fields.refuse("image", "image and images are both given; give one of them.")
    named = {f"images[{i}]": image for i, image in enumerate(several)} if single is None else {"image": single}
    parts = []
    for where, image in named.items():
        if isinstance(image, str):
            parts.append(conversation.image(Fields({where: image}), where, "user"))
        elif isinstance(image, dict):
            parts.append(conversation.image(Fields(image, f"{where}."), "url", "user"))
        else:
            fields.refuse(where, f"{where} must be an address, or an object with its url.")
    return parts


def _read_choices(fields: Fields) -> list[str]:
    if isinstance(fields.get("choices"), str):
        fields.refuse("choices", "choices must be a list of strings.")
    choices = fields.needed("choices", fields.texts("choices", MAX_CHOICES))
    if len(choices) < 2:
        fields.refuse("choices", f"choices must hold at least two strings, got {len(choices)}.")
    if len(set(choices)) < len(choices):
        fields.refuse("choices", "choices must differ, and two are the same.")
    for text in choices:
        if not 1 <= len(text) <= MAX_CHOICE_LENGTH:
            fields.refuse(
                "choices", f"choices must be strings of 1 to {MAX_CHOICE_LENGTH} characters, got {len(text)}."
            )
    return choices


class Writer:
    """The decision's object. Responses of the engine tell what it cost."""

    done = False

    def __init__(self, ask: Ask, served: Served) -> None:
        self._answers = Answers(ask, served, "decision")
        self._decision: Decision | None = None

    def begin(self) -> list[Chunk]:
        return []

    def piece(self, index: int, response: GenerationResponse) -> list[Chunk]:
        self._answers.all[index].add(response)
        return []

    def decided(self, decision: Decision) -> None:
        self._decision = decision

    def end(self) -> list[Chunk]:
        return []

    def fail(self, error: RequestError) -> list[Chunk]:
        return [error.body]

    def whole(self) -> dict[str, Any]:
        decision, answers = self._decision, self._answers
        assert decision is not None
        usage = answers.usage()
        return {
            "id": answers.id,
            "object": "decision",
            "created": answers.created,
            "model": answers.model,
            "choice": decision.choice,
            "probabilities": decision.probabilities,
            "logprobs": {choice: max(logprob, LEAST) for choice, logprob in decision.logprobs.items()},
            "usage": {**usage, "completion_tokens": 0, "total_tokens": usage["prompt_tokens"]},
        }
