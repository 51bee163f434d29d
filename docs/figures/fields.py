"""Prints the tables of docs/server.md: what the server does about each field of a request.

    python docs/figures/fields.py

They come from the tables that the server itself reads, and a test compares them with the page.
"""

import json

from mlx_fastvlm.server.dialect import chat, completions, decisions, options, responses, sampling
from mlx_fastvlm.server.dialect.table import Honoured, Ignored, Refused

# What several endpoints have is told once.
SHARED = {
    "How tokens are chosen, in chat, completions and responses": sampling.SAMPLING,
    "Of this server, in all of them": options.EXTENSIONS,
    "What changes nothing, in all of them": options.BOOKKEEPING,
}
ENDPOINTS = {
    "/v1/chat/completions": chat.FIELDS,
    "/v1/completions": completions.FIELDS,
    "/v1/responses": responses.FIELDS,
    "/v1/decisions": decisions.FIELDS,
}


def own(fields):
    """Without what the shared tables say of it."""
    shared = {name: decision for table in SHARED.values() for name, decision in table.items()}
    return {name: decision for name, decision in fields.items() if decision is not shared.get(name)}


# Each table's heading in the page.
TABLES = {**{path: own(fields) for path, fields in ENDPOINTS.items()}, **SHARED}


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
