"""``python -m mlx_fastvlm.server``: FastVLM behind OpenAI's HTTP interface."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ..cli.flags import DEBUG, add_model_flags, load_chosen_model
from ..cli.parser import Parser, run
from .serving import serve
from .settings import LOG_LEVELS, ServerSettings

KEY = "FASTVLM_API_KEY"
_DEFAULTS = ServerSettings()


def parser() -> argparse.ArgumentParser:
    """The command line of ``python -m mlx_fastvlm.server``."""
    parser = Parser(
        prog="python -m mlx_fastvlm.server",
        description="Serve FastVLM to clients of OpenAI's API. Logs go to stderr, one JSON object per line.",
        epilog="example: fastvlm server --model demo --port 8080",
    )
    add_model_flags(parser)
    parser.add_argument("--name", help="model id that clients see (the hub id, or the folder's name)")
    listening = parser.add_argument_group("access")
    _setting(listening, "--host", str, "address to listen on; one that other machines can reach requires a key")
    _setting(listening, "--port", int, "port to listen on; 0 picks a free one")
    listening.add_argument(
        "--api-key",
        dest="api_keys",
        action="append",
        metavar="KEY",
        help=f"key that requests must send; repeatable; {KEY} is safer, since others can read command lines",
    )
    listening.add_argument(
        "--allow-host",
        dest="allow_hosts",
        action="append",
        metavar="NAME",
        help="another host name of this server; repeatable",
    )
    listening.add_argument(
        "--allow-origin",
        dest="allow_origins",
        action="append",
        metavar="URL",
        help="let pages from this origin use the server; repeatable",
    )
    images = parser.add_argument_group("images")
    images.add_argument("--image-root", type=Path, metavar="DIR", help="let requests name image files in this folder")
    images.add_argument("--allow-urls", action="store_true", help="let requests name images at public URLs")
    _setting(images, "--max-images", int, "images per request")
    _setting(images, "--max-pixels", int, "pixels per image or video frame, before scaling")
    limits = parser.add_argument_group("limits")
    _setting(limits, "--max-rows", int, "answers to generate at once")
    _setting(limits, "--max-queue", int, "requests that may wait; more are refused with status 429")
    _setting(limits, "--max-tokens", int, "most tokens a request may ask for")
    _setting(limits, "--max-body", int, "bytes per request")
    _setting(limits, "--request-timeout", float, "seconds a request may take")
    _setting(limits, "--hang-limit", float, "seconds a step may take before /ready fails")
    _setting(limits, "--exit-after", float, "seconds after that before the process exits with an error")
    _setting(limits, "--drain", float, "seconds to finish answers after SIGTERM")
    logging = parser.add_argument_group("output")
    logging.add_argument(
        "--log-level", choices=LOG_LEVELS, default=_DEFAULTS.log_level, help="log messages at this level and above"
    )
    logging.add_argument("--debug", action="store_true", help=f"{DEBUG} at startup")
    return parser


def _setting(group: Any, flag: str, kind: type, help: str) -> None:
    default = getattr(_DEFAULTS, flag.removeprefix("--").replace("-", "_"))
    metavar = "N" if kind in (int, float) else "TEXT"
    group.add_argument(flag, type=kind, default=default, metavar=metavar, help=f"{help} ({default})")


def settings(arguments: argparse.Namespace) -> ServerSettings:
    """What the flags say; ``UsageError`` for a value that can't be."""
    names = ServerSettings.__dataclass_fields__
    given = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    keys = given.pop("api_keys", None) or ([os.environ[KEY]] if os.environ.get(KEY) else [])
    for name in ("allow_hosts", "allow_origins"):
        given[name] = tuple(given.get(name, ()))
    return ServerSettings(**given, api_keys=tuple(keys))


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m mlx_fastvlm.server``."""
    arguments = parser().parse_args(argv)
    return run(lambda: serve(settings(arguments), lambda: load_chosen_model(arguments)), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
