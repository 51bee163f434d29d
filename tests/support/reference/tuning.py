"""Record what peft and torch do in one step of fine-tuning the small model, for tests that run without them.

    pip install torch timm transformers torchvision peft
    python -m tests.support.reference.tuning

writes tuning.npz beside this file: for LoRA, DoRA and full fine-tuning the loss of the recorded batch, samples of each
trained parameter's gradient, and of the parameter after one step of AdamW.
"""

import sys

from tests.support.reference.record import build, fill  # isort: skip  (before peft: torchvision's missing parts)
import numpy as np
import peft
import torch

from tests.support import small

KINDS = ("lora", "dora", "full")


def frozen_model():
    """transformers' model on the small weights, tied as its files are."""
    model = build("eager")
    fill(model)
    embedding = small.tensor("model.language_model.embed_tokens.weight", (small.TEXT["vocab_size"], 64))
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight.copy_(torch.from_numpy(embedding))
    model.tie_weights()
    return model.requires_grad_(False)


def adapted(model, kind):
    """The model with the adapters of small.TUNED, of which every number is drawn by its name."""
    config = peft.LoraConfig(
        r=small.RANK,
        lora_alpha=small.RANK * small.SCALE,
        target_modules=r".*language_model\.layers\.[12]\.(" + "|".join(map(r"\.".join, _split())) + ")",
        use_dora=kind == "dora",
    )
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                value = small.adapter(plain(name), _ours(parameter).shape)
                if value is not None:
                    parameter.copy_(_ours(torch.from_numpy(value)))
    return model


def _ours(x):
    """A matrix as this package has it; anything else as it is."""
    return x.T if x.ndim == 2 else x


def _split():
    return [key.split(".") for key in small.TUNED]


def plain(name):
    """peft's name of a parameter -> this package's."""
    name = name.removeprefix("base_model.model.").removeprefix("model.").replace(".default", "").removesuffix(".weight")
    return name.replace("lora_A", "lora_a").replace("lora_B", "lora_b").replace("lora_magnitude_vector", "m")


def step(model, names, eps):
    """Loss, gradients and parameters after a step, by this package's names, matrices of adapters as it has them."""
    ids, mask, positions = (torch.from_numpy(x) for x in small.batch())
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    inputs |= {"pixel_values": torch.from_numpy(small.pixels(3)), "labels": torch.from_numpy(small.labels())}
    trained = {names(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=small.RATE, betas=(0.9, 0.999), eps=eps, weight_decay=0.01)
    loss = model(**inputs).loss
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in trained.items()}
    optimizer.step()

    def ours(tensors):
        return {n: (_ours(x) if ".lora_" in n else x).detach().numpy() for n, x in sorted(tensors.items())}

    return loss.item(), ours(gradients), ours(trained)


def main():
    recorded = {}
    for kind in KINDS:
        model = frozen_model()
        if kind == "full":
            model.model.language_model.layers[1:].requires_grad_(True)
            loss, gradients, after = step(model, lambda name: name.removeprefix("model."), small.EPS[kind])
        else:
            loss, gradients, after = step(adapted(model, kind), plain, small.EPS[kind])
        recorded[f"{kind}.loss"] = np.array(loss)
        recorded[f"{kind}.names"] = np.array(sorted(gradients))
        for part, tensors in (("gradients", gradients), ("after", after)):
            recorded[f"{kind}.{part}"] = np.concatenate([small.sample(x) for x in tensors.values()])
            recorded[f"{kind}.{part}.std"] = np.array([x.std() for x in tensors.values()])
    recorded["versions"] = np.array(f"peft {peft.__version__}, torch {torch.__version__}")
    np.savez_compressed(small.REFERENCE / "tuning.npz", **recorded)
    print(f"{len(recorded)} arrays recorded with {recorded['versions']}")


if __name__ == "__main__":
    sys.exit(main())
