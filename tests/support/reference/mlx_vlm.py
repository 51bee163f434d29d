"""What mlx-vlm makes of this package's exports, and this package of mlx-vlm's conversions.

    pip install . mlx-vlm
    python -m tests.support.reference.mlx_vlm            # the small and the demo checkpoint; writes mlx_vlm.json
    python -m tests.support.reference.mlx_vlm --tower    # a tower of full size, mlx-vlm as it is

Each checkpoint goes through ``convert(layout="mlx-vlm")``, plain and with 4 bits; mlx-vlm loads the result, strictly,
prepares prompt and image itself, and answers. Its logits and its greedy text have to be those of this package on the
source. Then mlx-vlm converts the same checkpoints (plain, 4, 8 bits, mixed), and this package loads that.

mlx-vlm takes the tower's shape from its class, and from no file. For the small checkpoints that class is given their
shape here; ``--tower`` changes nothing of it.
"""

import argparse
import json
import tempfile
from pathlib import Path

from mlx_fastvlm import FastVlmConfig, FastVlmForConditionalGeneration, convert, generate, load  # before mlx

import mlx.core as mx  # isort: skip
import numpy as np

from mlx_fastvlm.config import TextConfig
from tests.support import checkpoints, small
from tests.support.paths import ROOT

FILE = Path(__file__).with_suffix(".json")
QUESTION, TOKENS = "What is this?", 8
IMAGE = ROOT / "examples" / "images" / "shapes-1.png"
LIMIT = 1e-4
SHAPE = ("layers", "embed_dims", "mlp_ratios", "token_mixers", "pos_embs_shapes", "downsamples", "cls_ratio")
CONVERSIONS = {
    "plain": {},
    "4 bits": {"quantize": True, "q_bits": 4, "q_group_size": 32},
    "8 bits": {"quantize": True, "q_bits": 8, "q_group_size": 32},
    "mixed": {"quantize": True, "quant_predicate": "mixed_4_8"},
}


def take_shape(config):
    """Give mlx-vlm's class the shape of a checkpoint's tower."""
    from mlx_vlm.models.fastvlm.config import VisionConfig  # noqa: PLC0415  tests read this file without mlx-vlm

    for name in SHAPE:
        value = config[name]
        if isinstance(value, list):  # it asks for tuples inside
            value = [tuple(x) if isinstance(x, list) else x for x in value]
        setattr(VisionConfig, name, value)


def theirs(folder):
    """mlx-vlm's last logits, float32, and its greedy text; None for one that it can't spell."""
    import mlx_vlm  # noqa: PLC0415  as above
    from mlx_vlm.prompt_utils import apply_chat_template  # noqa: PLC0415  as above
    from mlx_vlm.utils import prepare_inputs  # noqa: PLC0415  as above

    config = json.loads((folder / "config.json").read_text())
    take_shape(config["vision_config"])
    model, processor = mlx_vlm.load(str(folder))
    prompt = apply_chat_template(processor, config, QUESTION, num_images=1)
    inputs = prepare_inputs(
        processor, images=[str(IMAGE)], prompts=prompt, image_token_index=-200, add_special_tokens=False
    )
    logits = model(inputs["input_ids"], inputs["pixel_values"], mask=inputs["attention_mask"]).logits
    try:
        text = mlx_vlm.generate(model, processor, prompt, [str(IMAGE)], max_tokens=TOKENS, temperature=0).text
    except IndexError:  # its detokenizer has no token for the unused rows of an embedding
        text = None
    return np.array(logits[0, -1].astype(mx.float32)), text


def ours(folder):
    """This package's last logits and its greedy text."""
    model, processor = load(folder)
    text = generate(model, processor, QUESTION, str(IMAGE), max_tokens=TOKENS)
    message = [{"role": "user", "content": f"<image>\n{QUESTION}"}]
    ids = processor.encode_chat(message)
    logits = model(mx.array([ids]), processor.preprocess(str(IMAGE)), logits_to_keep=1).logits
    return np.array(logits[0, -1].astype(mx.float32)), text


def difference(values, reference):
    return float(np.abs(values - reference).max() / reference.std())


def full_tower(folder):
    """A tower of the released models' shape before a small decoder, with random weights."""
    config = FastVlmConfig(
        text_config=TextConfig(**small.TEXT), image_token_id=-200, tie_word_embeddings=True, image_aspect_ratio="pad"
    )
    mx.random.seed(0)
    model = FastVlmForConditionalGeneration(config)
    model.save_pretrained(folder)
    checkpoints.write_tokenizer(folder)
    return folder


def sources(folder, tower):
    if tower:
        return {"full tower": full_tower(folder / "tower")}
    return {
        "demo": "demo",
        "small": checkpoints.write(folder / "small", "apple"),
        "small, untied": checkpoints.write(folder / "untied", "apple", head="own"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", action="store_true")
    arguments = parser.parse_args()
    recorded, wrong = {}, 0

    def report(name, values, reference, same):
        nonlocal wrong
        far = difference(values, reference)
        wrong += not (far < LIMIT and same)
        print(f"{name:40} {far:.1e}  {'same text' if same else 'OTHER TEXT'}", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, source in sources(folder, arguments.tower).items():
            for how, options in {"plain": {}, "4 bits": {"quantize": True, "q_group_size": 32}}.items():
                exported, native = (folder / f"{name} {how} {kind}" for kind in ("exported", "native"))
                for target, layout in ((exported, "mlx-vlm"), (native, "mlx")):
                    convert(source, target, layout=layout, dtype="float32", verify=False, **options)
                logits, text = theirs(exported)
                expected, expected_text = ours(native)
                report(f"exported, {name}, {how}", logits, expected, text in (None, expected_text))
                again, again_text = ours(exported)
                report("  and read back", again, expected, again_text == expected_text)
                recorded[f"{name}, {how}"] = {"logits": small.sample(logits).tolist(), "text": text}
            plain = folder / f"{name} plain exported"
            for how, options in CONVERSIONS.items():
                from mlx_vlm import convert as their_convert  # noqa: PLC0415  as above

                target = folder / f"{name} {how} theirs"
                their_convert(str(plain), str(target), dtype="float32", **options)
                (logits, text), (expected, expected_text) = ours(target), theirs(target)
                report(f"theirs, {name}, {how}", logits, expected, expected_text in (None, text))
    if not arguments.tower:
        FILE.write_text(json.dumps(recorded, indent=0) + "\n")
    raise SystemExit(wrong)


if __name__ == "__main__":
    main()
