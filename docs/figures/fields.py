"""Prints the tables of docs/server.md: what the server does about each field of a request.

    python docs/figures/fields.py

They come from the tables that the server itself reads, and a test compares them with the page.
"""

import json

from mlx_fastvlm.server.dialect import chat, completions, decisions, options, responses
from mlx_fastvlm.server.dialect.fields import Honoured, Ignored, Refused

# Each table's heading in the page.
TABLES = {
    "/v1/chat/completions": chat.FIELDS,
    "/v1/completions": completions.FIELDS,
    "/v1/responses": responses.FIELDS,
    "/v1/decisions": decisions.FIELDS,
    "Of this server, in all of them": options.EXTENSIONS,
}


def table(fields):
    """Markdown: honoured fields first, then refused ones, then ignored ones."""
    rows = ["| field | |", "|---|---|"]
    for kind in (Honoured, Refused, Ignored):
        rows += [row(name, decision) for name, decision in fields.items() if isinstance(decision, kind)]
    return "\n".join(rows)


def row(name, decision):
    if isinstance(decision, Honoured):
        return f"| `{name}` | {decision.note} |"
    if isinstance(decision, Ignored):
        return f"| `{name}` | *ignored*: {decision.note} |"
    taken = ", ".join(f"`{json.dumps(value)}`" for value in decision.harmless)
    return f"| `{name}` | **refused**: {decision.note}{f' Taken: {taken}.' if taken else ''} |"


if __name__ == "__main__":
    for heading, fields in TABLES.items():
        print(f"### {heading}\n\n{table(fields)}\n")
