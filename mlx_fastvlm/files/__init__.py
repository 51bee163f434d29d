"""Files on disk: text and JSON, safetensors; read with care, and written whole or not at all."""

from .atomic import atomic_file, atomic_folder, check_target
from .tensors import read_safetensors, write_tensors
from .text import SIZE_LIMIT, check_name, check_size, json_line, read_json, read_optional_json, read_text, write_json

__all__ = [
    "SIZE_LIMIT",
    "atomic_file",
    "atomic_folder",
    "check_name",
    "check_size",
    "check_target",
    "json_line",
    "read_json",
    "read_optional_json",
    "read_safetensors",
    "read_text",
    "write_json",
    "write_tensors",
]
