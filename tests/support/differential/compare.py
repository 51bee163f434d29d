"""One case, computed by both: what came out."""

import math
import re
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mlx_fastvlm import FastVlmProcessor, convert, load, stream_generate
from mlx_fastvlm.cache.policy import make_cache
from mlx_fastvlm.config import FastVlmConfig

from tests.support.differential import folders, prompts, theirs  # isort: skip  (mlx_fastvlm comes before mlx)

import mlx.core as mx  # isort: skip
import numpy as np

from tests.support.differential.converter import Converter, ConverterError
from tests.support.differential.draws import Case

LIMIT = 1e-4  # of the reference's standard deviation: features, logits; of the loss itself
PIXELS = 1e-6  # of the largest value: both compute it in float32, in their own order


class DifferentError(Exception):
    """Both answer, and not the same."""


@dataclass
class Outcome:
    """What became of a case.

    Attributes:
        kind: "equal"; "refused": here, in one line; "refused there", or by "both"; "warned": here, and different;
            "different": in silence.
        reason: of all but the first.
        largest: differences by what was compared.
    """

    kind: str
    reason: str = ""
    largest: dict[str, float] = field(default_factory=dict)


def tried(case: Case, converter: Converter | None = None) -> Outcome:
    """Write the case's checkpoint, and let both read and compute it.

    Args:
        converter: mlx-vlm's; it then makes what is read here of Apple's layout.
    """
    if converter is not None:
        case = {**case, "layout": "apple", **_kept_by_mlx_vlm(case)}
    largest: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            outcome = _compared(case, Path(name), largest, converter)
        except DifferentError as error:
            outcome = Outcome("different", str(error))
        except ConverterError as error:
            outcome = Outcome("refused by mlx-vlm", _general(str(error)))
        except (ValueError, OSError) as error:
            outcome = Outcome("refused" if "\n" not in str(error) else "different", _general(str(error)))
        except Exception as error:
            outcome = Outcome("different", f"{type(error).__name__}: {_general(str(error))}")
        said = [str(warning.message) for warning in told if "mlx_fastvlm" in warning.filename]
    if outcome.kind == "different" and said:
        outcome = Outcome("warned", f"{outcome.reason} ({_general(said[0])})")
    outcome.largest = largest
    return outcome


def _kept_by_mlx_vlm(case: Case) -> Case:
    """In place of what its converter does not take, the training form and heads of an own width, and of what it loses:
    an image size that only the tower's name or ``processor_config.json`` says (it writes 1024), and a head of its own
    where the configuration says that there is none."""
    return {
        "training": False,
        "hidden_size": "heads",
        "head": "own" if case["head"] == "own though tied" else case["head"],
        "settings": case["settings"] or {"do_convert_rgb": True},
        "settings' place": "preprocessor_config.json",
    }


def _compared(case: Case, folder: Path, largest: dict[str, float], converter: Converter | None) -> Outcome:
    there, here = folder / "there", folder / "here"
    there.mkdir()
    ids = folders.write_prompt_files(there, case)
    described = folders.config(case, min(ids.values()) + len(ids), ids["<image>"])
    try:
        shapes = theirs.shapes(described)
        made = folders.tensors(case, shapes)
        folders.write_checkpoint(there, described, made)
        processor = theirs.load_processor(there)
        if case["tokenizer's files"] == "tokenizer.json":
            theirs.save_tokenizer(processor, there)
            (there / "chat_template.jinja").write_text(folders.template(case), encoding="utf-8")
            processor = theirs.load_processor(there)
        model, report = theirs.load_model(there)
    except Exception as error:  # whatever it does not take
        return _without_theirs(described, there, error)
    if report:
        return Outcome("refused there", f"tensors: {_general(str(report))}")
    rows = prompts.rows(case)
    try:
        given = theirs.inputs(processor, case, rows)
        features = None if given.pixels is None else theirs.features(model, given.pixels)
        labels = _labels(given)
        logits, loss = theirs.forward(model, given, labels)
        alone = given.ids[:1][:, given.mask[0].bool()]
        first = None if not rows[0].images else given.pixels[: len(rows[0].images)]
        tokens, chosen_from = theirs.greedy(model, alone, first)
        answer = processor.tokenizer.decode(_until_end(tokens, _ends(ids)), skip_special_tokens=True)
    except Exception as error:
        return _without_theirs(described, there, error)
    if not all(np.isfinite(x).all() for x in (logits, chosen_from)):
        return Outcome("refused there", "not a number")
    source = _here(case, folder, there, here, described, made, ids)
    if converter is not None:
        source = folder / "mlx-vlm"
        converter(here, source, dtype="float32")
    if case["layout"] == "there and back":
        model, report = theirs.load_model(here)
        logits, loss = theirs.forward(model, given, labels)
    ours, prepared = load(source, dtype="float32")
    read = _read(prepared, case, rows)
    if report:
        raise DifferentError(f"what was written for transformers does not fit: {report}")

    _same_inputs(given, read, prepared.image_token_id, ids["<image>"], largest)
    if features is not None:
        found = np.array(ours.get_image_features(read["pixel_values"]))
        _near("image features", found, features, LIMIT, features.std(), largest)
    out = ours(**read, labels=mx.array(labels))
    real = given.mask.numpy().astype(bool)
    near = np.array(out.logits)[..., : logits.shape[-1]][real]
    _near("logits", near, logits[real], LIMIT, logits[real].std(), largest)
    if math.isfinite(loss) or math.isfinite(out.loss.item()):
        _near("loss", out.loss.item(), loss, LIMIT, max(1, abs(loss)), largest)
    row = mx.array(np.where(alone.numpy() == ids["<image>"], prepared.image_token_id, alone.numpy()))
    shown = {} if first is None else {"pixel_values": read["pixel_values"][: len(rows[0].images)]}
    _same_steps(ours, row, shown, tokens, chosen_from, largest)
    if rows[0].messages is not None:
        _same_answer(ours, prepared, rows[0], tokens, chosen_from, answer)
    return Outcome("equal")


def _here(case, folder, there, here, described, made, ids) -> Path:
    """The checkpoint that is read here."""
    layout = case["layout"]
    if layout == "transformers":
        return there
    if layout in folders.LLAVA:
        here.mkdir()
        folders.write_llava_prompt_files(here, case, ids)
        folders.write_checkpoint(here, folders.llava_config(case, described), folders.llava_tensors(case, made))
        return here
    convert(there, here if layout == "mlx" else folder / "mlx", dtype="float32")
    if layout == "there and back":
        convert(folder / "mlx", here, layout="transformers")
    return here


def tried_prompts(case: Case, seeds: Iterable[int]) -> list[Outcome]:
    """Many prompts and their images through one case's processor, without a model."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there, here = Path(name) / "there", Path(name) / "here"
        there.mkdir(), here.mkdir()
        ids = folders.write_prompt_files(there, case)
        described = folders.config(case, min(ids.values()) + len(ids), ids["<image>"])
        folders.write(there / "config.json", described)
        try:
            processor = theirs.load_processor(there)
            if case["tokenizer's files"] == "tokenizer.json":
                theirs.save_tokenizer(processor, there)
                (there / "chat_template.jinja").write_text(folders.template(case), encoding="utf-8")
                processor = theirs.load_processor(there)
        except Exception as error:
            return [_without_theirs(described, there, error)]
        llava = case["layout"] in folders.LLAVA
        try:
            if llava:
                folders.write_llava_prompt_files(here, case, ids)
                described = folders.llava_config(case, described)
            prepared = FastVlmProcessor.from_folder(here if llava else there, FastVlmConfig.from_dict(described))
        except (ValueError, OSError) as error:
            return [Outcome("refused", _general(str(error)))]
        return [_prompt({**case, "prompt": seed}, processor, prepared, ids["<image>"]) for seed in seeds]


def _prompt(case: Case, processor, prepared: FastVlmProcessor, image: int) -> Outcome:
    rows, largest = prompts.rows(case), {}
    try:
        given = theirs.inputs(processor, case, rows)
    except Exception as error:
        return Outcome("refused there", f"{type(error).__name__}: {_general(str(error))}")
    try:
        _same_inputs(given, _read(prepared, case, rows), prepared.image_token_id, image, largest)
    except DifferentError as error:
        return Outcome("different", str(error))
    except (ValueError, OSError) as error:
        return Outcome("refused", _general(str(error)))
    return Outcome("equal", largest=largest)


def _read(processor: FastVlmProcessor, case: Case, rows) -> dict[str, mx.array]:
    encoded = [
        processor.encode(row.text) if row.text is not None else processor.encode_chat(row.messages) for row in rows
    ]
    inputs = processor.pad(encoded, case["padding_side"])
    images = [image for row in rows for image in row.images]
    return inputs if not images else {**inputs, "pixel_values": processor.preprocess(images)}


def _without_theirs(described: dict, folder: Path, error: Exception) -> Outcome:
    """transformers fails; does this package, at what the files say?"""
    there = f"{type(error).__name__}: {_general(str(error))}"
    try:
        FastVlmProcessor.from_folder(folder, FastVlmConfig.from_dict(described))
    except (ValueError, OSError) as own:
        return Outcome("both", _general(str(own)))
    return Outcome("refused there", there)


def _labels(given) -> np.ndarray:
    """Every third place left out, and padding, and what has only padding before it."""
    ids, mask = given.ids.numpy(), given.mask.numpy()
    places = mask.cumsum(axis=1)
    return np.where((mask == 1) & (places > 1) & (places % 3 > 0), ids, -100)


def _ends(ids: dict[str, int]) -> set[int]:
    return {ids["<|im_end|>"], ids["<|endoftext|>"]}


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    stops = [i for i, token in enumerate(tokens) if token in ends]
    return tokens[: stops[0]] if stops else tokens


def _same_inputs(given, read, ours: int, image: int, largest: dict[str, float]):
    found = np.array(read["input_ids"])
    if not np.array_equal(np.array(read["attention_mask"]), given.mask.numpy()):
        raise DifferentError(f"attention_mask: {found.shape}, there {tuple(given.ids.shape)}")
    real = given.mask.numpy().astype(bool)
    if not np.array_equal(np.where(found == ours, image, found)[real], given.ids.numpy()[real]):
        raise DifferentError(f"input_ids: {found[real].tolist()}, there {given.ids.numpy()[real].tolist()}")
    if given.pixels is not None:
        pixels = given.pixels.numpy().transpose(0, 2, 3, 1)
        _near("pixel_values", np.array(read["pixel_values"]), pixels, PIXELS, np.abs(pixels).max(), largest)


def _near(what: str, ours, expected, limit: float, scale: float, largest: dict[str, float]):
    if np.shape(ours) != np.shape(expected):
        raise DifferentError(f"{what}: shape {np.shape(ours)}, there {np.shape(expected)}")
    error = float(np.max(np.abs(np.asarray(ours, np.float64) - expected), initial=0) / scale)
    largest[what] = max(largest.get(what, 0), error)
    if not error <= limit:
        raise DifferentError(f"{what}: {error:.1e} off")


def _same_steps(model, ids, images, tokens, logits, largest):
    """Their tokens, one after another over a cache: the same logits, so the same choice unless two are as likely."""
    cache = make_cache(model)
    for step, expected in enumerate(logits):
        out = model(ids, past_key_values=cache, **images)
        _near("cached logits", np.array(out.logits)[0, -1, : expected.size], expected, LIMIT, expected.std(), largest)
        ids, images = mx.array([[tokens[step]]]), {}


def _same_answer(model, processor, row, tokens, logits, answer):
    """What ``stream_generate`` says, up to a token that was as likely as another."""
    responses = list(
        stream_generate(model, processor, row.messages, row.images or None, max_tokens=len(tokens), temperature=0)
    )
    said = [response.token for response in responses if response.token not in processor.eos_token_ids]
    expected = _until_end(tokens, processor.eos_token_ids)
    for step, (ours, theirs_) in enumerate(zip(said, expected)):
        if ours != theirs_:
            if logits[step].max() - logits[step][ours] > 2 * LIMIT * logits[step].std():
                raise DifferentError(f"answer: tokens {said}, there {expected}")
            return
    if len(said) != len(expected):
        raise DifferentError(f"answer: tokens {said}, there {expected}")
    text = "".join(response.text for response in responses)
    if text.rstrip("\ufffd") != answer.rstrip("\ufffd"):
        raise DifferentError(f"answer: {text!r}, there {answer!r}")


def _general(message: str) -> str:
    """A reason without what is the case's own: numbers, names, places."""
    message = re.sub(r"/[\w/.-]+/(here|there|mlx)", "FOLDER", message.split("\n")[0])
    return re.sub(r"\d[\d.e+-]*", "N", message)[:160]
