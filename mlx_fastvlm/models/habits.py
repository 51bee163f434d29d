"""What transformers' users type on a model that MLX has no like of: what is done in any case, or what to do instead."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.nn as nn

from ..checkpoints.publishing import publish
from ..checkpoints.quantization import modules_of
from ..keywords import ANY

LOADING = {
    "torch_dtype": ((None, "auto"), "give dtype, one of float32, bfloat16 and float16"),
    "device_map": ((None, "auto", "mps", "cpu", "cuda"), "MLX chooses the device, so leave it out"),
    "low_cpu_mem_usage": (ANY, ""),
    "use_safetensors": ((None, True), "other weights are never read, so leave it out"),
    "trust_remote_code": ((None, False, True), "no code of a checkpoint ever runs, so leave it out"),
    "output_loading_info": ((None, False), "weights that are missing or too many are errors, so leave it out"),
    "ignore_mismatched_sizes": ((None, False), "correct the weights or config.json"),
    "subfolder": ((None, ""), "give the folder's whole path"),
    "config": ((None,), "make a FastVlmForConditionalGeneration(config) and load_weights, or edit config.json"),
    "quantization_config": ((None,), "quantize with mlx_fastvlm.convert(..., quantize=True)"),
}
SAVING = {
    "max_shard_size": (ANY, ""),  # one file each, however large
    "safe_serialization": ((None, True), "weights are written as safetensors, so leave it out"),
    "push_to_hub": ((None, False), "call model.push_to_hub"),
}
CALLING = {
    "return_dict": ((None, True), "outputs are objects with names"),
    "num_items_in_batch": ((None,), "take the logits, and divide the sum of the losses yourself"),
}
RESIZING = {"mean_resizing": ((None, True), "new rows are always drawn around the mean of the old ones")}
_ATTRIBUTES = {
    "to": "MLX chooses the device; for another type call set_dtype(mx.bfloat16)",
    "cuda": "MLX chooses the device",
    "cpu": "MLX chooses the device; mx.set_default_device(mx.cpu) changes it",
    "half": "call set_dtype(mx.bfloat16); the tower never runs in float16",
    "bfloat16": "call set_dtype(mx.bfloat16)",
    "float": "call set_dtype(mx.float32)",
    "device": "MLX chooses it, see mx.default_device()",
    "generation_config": "give model.generate its values as arguments",
    "tie_weights": "config.tie_word_embeddings decides when the model is made",
    "named_parameters": "take mlx.utils.tree_flatten(model.parameters())",
}


class Habits(nn.Module):
    """A module whose missing attributes say what to do instead, where transformers' models have them."""

    save_pretrained: Callable[..., None]

    def __getattr__(self, name: str) -> Any:
        if name in _ATTRIBUTES and name not in self:
            raise AttributeError(f"{type(self).__name__} has no {name} here; {_ATTRIBUTES[name]}.")
        return super().__getattr__(name)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        layout: str = "mlx",
        processor: Any = None,
        private: bool = True,
        base_model: str | None = None,
    ) -> None:
        """Save, with a model card, and upload to a repository of the hub, which is made if there is none.

        Args:
            layout, processor: see ``save_pretrained``.
            private: False makes the repository public; think of the weights' licence.
            base_model: the hub's name of the model that this one was made from, for the card.

        Raises:
            OSError: the upload failed.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder, layout=layout, processor=processor)
            publish(folder, repo_id, modules_of(self), layout, private, base_model)
