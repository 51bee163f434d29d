"""The one kind of error that callers may want to tell from others, and the checks that raise it."""


class UsageError(ValueError):
    """An option has a value that it can't have; commands exit with 2 for it."""


def require(holds: bool, sentence: str, value: object) -> None:
    """``UsageError`` with the sentence and the value got, unless ``holds``."""
    if not holds:
        raise UsageError(f"{sentence}, got {short(value)}.")


def require_whole(name: str, value: object, *, optional: bool = False) -> None:
    """``UsageError`` unless an option's value is a whole number; ``optional`` allows None."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole or (optional and value is None), f"{name} must be a whole number", value)


def short(value: object) -> str:
    """A value for an error's sentence, cut off if it is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def one_line(text: str) -> str:
    """Words of others for an error's sentence: no line breaks, no control characters, and not too long."""
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text[:200])
    return shown if len(text) <= 200 else f"{shown}..."
