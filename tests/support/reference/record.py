"""Record what transformers and timm compute on the small weights, for tests that run without them.

    pip install torch timm transformers torchvision
    python -m tests.support.reference.record

writes shapes.json, recorded.npz and recorded.json beside this file. Run it again only when what is recorded should
change; the versions it ran with are kept in recorded.npz.
"""

import copy
import json
import sys

import numpy as np
import torch

from tests.support.reference import operators  # noqa: F401  before timm  # isort: skip

import timm
import transformers
from PIL import Image
from PIL import __version__ as pillow_version
from transformers import FastVlmConfig, FastVlmForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.fast_vlm.modeling_fast_vlm import FastVlmMultiModalProjector

from tests.support import small

torch.manual_seed(0)


def build(attention):
    """transformers' model on the small weights, float32."""
    config = FastVlmConfig(**{k: v for k, v in small.transformers_config().items() if k != "model_type"})
    config.text_config._attn_implementation = attention
    model = FastVlmForConditionalGeneration(config).eval()
    return model


def names_and_shapes(module, prefix=""):
    return {prefix + name: list(value.shape) for name, value in module.state_dict().items()}


def fill(module, prefix=""):
    """Give a module the small weights of its names."""
    state = {name: small.tensor(prefix + name, list(value.shape)) for name, value in module.state_dict().items()}
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()}, strict=True)


def stages(tower, pixels):
    """Every stage's output and the features, channels last."""
    outputs = []
    hooks = [stage.register_forward_hook(lambda *a: outputs.append(a[2])) for stage in tower.stages]
    features = tower.forward_features(pixels)
    for hook in hooks:
        hook.remove()
    return [x.permute(0, 2, 3, 1).float().numpy() for x in (*outputs, features)]


def gradients(model):
    """Gradients of the batch's loss by tensor and of the images: samples of each, and the whole ones' deviations.

    BatchNorm runs on its statistics, as it does wherever it is folded.
    """
    pixels = torch.from_numpy(small.pixels(3)).requires_grad_()
    ids, mask, positions = (torch.from_numpy(x) for x in small.batch())
    labels = torch.from_numpy(small.labels())
    inputs = {"input_ids": ids, "pixel_values": pixels, "attention_mask": mask, "position_ids": positions}
    with torch.enable_grad():
        model.requires_grad_().zero_grad()
        model(**inputs, labels=labels).loss.backward()
    found = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    found = [found[name] for name in small.trainable(found)] + [pixels.grad.numpy()]
    samples = np.concatenate([small.sample(x) for x in found])
    return samples, np.array([x.std() for x in found])


def drift(model):
    """How far bfloat16 strays from float32 in every stage, layer and the logits: root mean square, in deviations."""
    lower = copy.deepcopy(model).to(torch.bfloat16)
    lower.model.language_model.rotary_emb = model.model.language_model.rotary_emb  # whose angles stay float32
    pixels, row = torch.from_numpy(small.pixels(2)), torch.from_numpy(small.batch()[0][:1])

    def steps(model, dtype):
        out = model(input_ids=row, pixel_values=pixels.to(dtype), output_hidden_states=True)
        tower = stages(model.model.vision_tower.timm_model, pixels.to(dtype))
        text = (out.image_hidden_states, *out.hidden_states[1:], out.logits)
        return [*tower, *(x.float().numpy() for x in text)]

    pairs = zip(steps(model, torch.float32), steps(lower, torch.bfloat16))
    return np.array([np.sqrt(np.mean((b - a) ** 2)) / a.std() for a, b in pairs])


def projectors(features):
    """What the projector makes of features: with every activation, without biases, and LLaVA's other types."""
    found = {}
    for act, bias in [*((act, True) for act in small.ACTIVATIONS), ("gelu", False)]:
        config = {k: v for k, v in small.transformers_config().items() if k != "model_type"}
        config |= {"projector_hidden_act": act, "multimodal_projector_bias": bias}
        projector = FastVlmMultiModalProjector(FastVlmConfig(**config))
        fill(projector, "model.multi_modal_projector.")
        found[f"projector.{act}{'' if bias else '.no_bias'}"] = projector(features).numpy()
    for kind in small.PROJECTORS:
        tensors = [torch.from_numpy(x) for x in small.projector_tensors(kind).values()]
        x = features
        for i in range(0, len(tensors), 2):  # LLaVA: Linear, then GELU and Linear again
            x = torch.nn.functional.linear(torch.nn.functional.gelu(x) if i else x, *tensors[i : i + 2])
        found[f"projector.{kind}"] = x.numpy()
    return found


def generation_steps(model):
    """What prepare_inputs_for_generation hands to the model, as shapes, in the first and in a later step."""
    ids, mask, _ = (torch.from_numpy(x) for x in small.batch())
    pixels = torch.from_numpy(small.pixels(3))
    steps = {
        "first": {"is_first_iteration": True},
        "later": {"next_sequence_length": 1},
        "later without a cache": {"use_cache": False},
    }
    return {
        name: {
            key: list(value.shape)
            for key, value in model.prepare_inputs_for_generation(
                ids, attention_mask=mask, pixel_values=pixels, labels=ids, **step
            ).items()
            if isinstance(value, torch.Tensor)
        }
        for name, step in steps.items()
    }


@torch.no_grad()
def main():
    recorded = {}
    model = build("eager")
    shapes = names_and_shapes(model)
    shapes.pop("lm_head.weight")  # tied: files do not hold it
    fill(model)
    # The head is the embedding, whatever name it was filled under last.
    name = "model.language_model.embed_tokens.weight"
    embedding = small.tensor(name, shapes[name])
    model.model.language_model.embed_tokens.weight.copy_(torch.from_numpy(embedding))
    model.tie_weights()
    assert torch.equal(model.lm_head.weight, model.model.language_model.embed_tokens.weight)

    pixels = torch.from_numpy(small.pixels(3))
    tower = model.model.vision_tower.timm_model
    for i, x in enumerate(stages(tower, pixels[:1])):
        recorded[f"inference.stage{i}"] = x
    recorded["projected"] = model.get_image_features(pixels).pooler_output.numpy()
    recorded["pooled"] = model.model.vision_tower(pixels).pooler_output.numpy()
    recorded |= projectors(tower.forward_features(pixels[:1]).flatten(2).permute(0, 2, 1))
    recorded["gradients.inference"], recorded["gradients.inference.std"] = gradients(model)
    recorded["drift"] = drift(model)
    steps = generation_steps(model)

    ids, mask, positions = (torch.from_numpy(x) for x in small.batch())
    labels = torch.from_numpy(small.labels())
    inputs = {"input_ids": ids, "pixel_values": pixels, "attention_mask": mask, "position_ids": positions}
    out = model(**inputs, labels=labels, output_hidden_states=True, output_attentions=True)
    recorded["batch.logits"], recorded["batch.loss"] = out.logits.numpy(), out.loss.numpy()
    for i, x in enumerate(out.hidden_states):
        recorded[f"batch.hidden{i}"] = x.numpy()
    for i, x in enumerate(out.attentions):
        recorded[f"batch.attention{i}"] = x.numpy()

    # One row alone, no padding: logits and the greedy continuation. Its images are the first two.
    row = ids[:1]
    recorded["row.logits"] = model(input_ids=row, pixel_values=pixels[:2]).logits.numpy()
    generated = model.generate(
        input_ids=row,
        pixel_values=pixels[:2],
        attention_mask=torch.ones_like(row),
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=small.PADDING,
    )
    recorded["row.greedy"] = generated[0, row.shape[1] :].numpy().astype(np.int32)

    # A head of its own, as in 7B.
    head = torch.from_numpy(small.tensor("lm_head.weight", shapes[name]))
    recorded["row.untied_logits"] = (
        model.model(input_ids=row, pixel_values=pixels[:2]).last_hidden_state @ head.T
    ).numpy()

    # The tower as it is trained: branches, BatchNorm with its running statistics.
    branched = timm.create_model("fastvit_mci3", **small.VISION, inference_mode=False, num_classes=0).eval()
    prefix = "model.vision_tower.timm_model."
    training_shapes = names_and_shapes(branched, prefix)
    fill(branched, prefix)
    for i, x in enumerate(stages(branched, pixels[:1])):
        recorded[f"training.stage{i}"] = x
    model.model.vision_tower.timm_model = branched
    recorded["training.row.logits"] = model(input_ids=row, pixel_values=pixels[:2]).logits.numpy()
    recorded["gradients.training"], recorded["gradients.training.std"] = gradients(model)

    # A larger vocabulary. This changes the model.
    rows, multiple = small.RESIZED
    resized = model.resize_token_embeddings(rows, pad_to_multiple_of=multiple).weight
    recorded["resized.size"] = np.array([*resized.shape, model.lm_head.weight.shape[0]])
    recorded["resized.rows"] = resized[small.TEXT["vocab_size"] :].numpy()

    # Images: transformers' crop, and LLaVA's padding in front of the same resize.
    clip = CLIPImageProcessorPil(
        size={"shortest_edge": small.SQUARE},
        crop_size={"height": small.SQUARE, "width": small.SQUARE},
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
    )
    for width, height in small.ODD_SIZES:
        image = Image.fromarray(small.odd_image(width, height))
        side = max(image.size)
        padded = Image.new("RGB", (side, side), (0, 0, 0))
        padded.paste(image, ((side - width) // 2, (side - height) // 2))
        for kind, prepared in (("crop", image), ("pad", padded)):
            values = clip(images=prepared, return_tensors="np")["pixel_values"][0]
            recorded[f"{kind}.{width}x{height}"] = values.transpose(1, 2, 0)

    recorded["versions"] = np.array(
        f"transformers {transformers.__version__}, timm {timm.__version__}, torch {torch.__version__}, "
        f"pillow {pillow_version}"
    )
    forms = {"inference": shapes, "training": training_shapes}
    (small.REFERENCE / "shapes.json").write_text(json.dumps(forms, separators=(",", ":")) + "\n")
    np.savez_compressed(small.REFERENCE / "recorded.npz", **recorded)
    texts = {"default_config": FastVlmConfig().to_dict(), "generation_steps": steps}
    (small.REFERENCE / "recorded.json").write_text(json.dumps(texts, indent=1) + "\n")
    print(f"{len(recorded)} arrays recorded with {recorded['versions']}")


if __name__ == "__main__":
    sys.exit(main())
