"""Values that ``config.json`` can't have, and settings of its side files."""

from tests.support import small

from .checkpoints import config, model, side, text

TEMPLATE = "chat_template.jinja"


def vision(words, **changes):
    return model(words, config(vision_config={**small.VISION, **changes}))


def template(words, source):
    return model(words, text(TEMPLATE, source))


def doubled(value, step, end="x"):
    """A template that does something sixty times."""
    loop = "{% for i in range(60) %}{% set n.x = " + step + " %}{% endfor %}"
    return "{% set n = namespace(x=" + value + ") %}" + loop + end


CASES = {
    # The decoder
    "config: no heads at all": model("num_attention_heads must be a whole number", config(num_attention_heads=0)),
    "config: heads that do not divide the width": model(
        "can't divide a hidden_size of 64", config(num_attention_heads=1024)
    ),
    "config: heads as a text": model("got '4'", config(num_attention_heads="4")),
    "config: more key heads than heads": model("can't share 3 key/value heads", config(num_key_value_heads=3)),
    "config: an odd head_dim": model("head_dim must be an even number", config(head_dim=33)),
    "config: heads of a million": model(
        "num_attention_heads x head_dim must be",
        config(head_dim=2**20, num_attention_heads=4096, num_key_value_heads=1),
    ),
    "config: half a layer": model("got 1.5", config(num_hidden_layers=1.5)),
    "config: layers true": model("got True", config(num_hidden_layers=True)),
    "config: layers null": model("missing", config(num_hidden_layers=None)),
    "config: no vocabulary": model("vocab_size must be", config(vocab_size=0)),
    "config: a vocabulary of billions": model("vocab_size must be", config(vocab_size=10**12)),
    "config: an MLP without width": model("intermediate_size must be", config(intermediate_size=0)),
    "config: no positions": model("max_position_embeddings must be", config(max_position_embeddings=0)),
    "config: eps negative": model("rms_norm_eps must be a positive", config(rms_norm_eps=-1)),
    "config: eps a text": model("got 'small'", config(rms_norm_eps="small")),
    "config: rope_theta 0": model("rope_theta must be a positive", config(rope_theta=0)),
    "config: rope_theta a list": model("got [1]", config(rope_theta=[1])),
    "config: a rope of another kind": model(
        "'longrope' is not supported", config(rope_scaling={"type": "longrope", "factor": 4.0})
    ),
    "config: a rope without its factor": model("'linear' needs factor", config(rope_scaling={"type": "linear"})),
    "config: a rope stretched by nothing": model(
        "factor must be a positive", config(rope_scaling={"type": "yarn", "factor": 0})
    ),
    "config: frequencies in the wrong order": model(
        "below high_freq_factor",
        config(rope_scaling={"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 1}),
    ),
    "config: rope_parameters a text": model("must be an object", config(rope_parameters="default")),
    "config: another activation": model("'hardswish' is not supported", config(hidden_act="hardswish")),
    "config: an activation that is a number": model("hidden_act 3 is not supported", config(hidden_act=3)),
    "config: windows of no tokens": model(
        "sliding_window", config(use_sliding_window=True, sliding_window=0, max_window_layers=0)
    ),
    "config: layer_types of windows": model(
        "layer_types", config(layer_types=["sliding_attention"] * 3, sliding_window=4)
    ),
    "config: eos_token_id half": model("token id must be", config(eos_token_id=1.5)),
    "config: eos_token_id a dict": model("token id must be", config(eos_token_id={"id": 2})),
    "config: an image token that ends turns": model("258 stands for an image, but", config(image_token_index=258)),
    "config: an image token that is a text": model("token id must be", config(image_token_index="<image>")),
    # The tower
    "config: a tower of no stages": vision("the number of stages must be", layers=[], embed_dims=[]),
    "config: a stage without a width": vision("4 entries for 5 stages", embed_dims=[16, 32, 64, 128]),
    "config: a width of nothing": vision("embed_dims must be a whole number", embed_dims=[0, 32, 64, 128, 256]),
    "config: widths of 1": vision("a multiple of 32", embed_dims=[1] * 5),
    "config: widths as a text": vision("embed_dims must be a list", embed_dims="wide"),
    "config: layers as texts": vision("got '1'", layers=["1", "2", "1", "2", "1"]),
    "config: mlp_ratios that leave nothing": vision("embed_dims x mlp_ratios", mlp_ratios=[0.001] * 5),
    "config: mlp_ratios that are huge": vision("got 1600000000", mlp_ratios=[1e8] * 5),
    "config: mlp_ratios NaN": vision("must be a positive number, got nan", mlp_ratios=[float("nan")] * 5),
    "config: a mixer that is none": vision("unknown token mixer", token_mixers=["blender"] * 5),
    "config: even kernels": vision("repmixer_kernel_size must be an odd", repmixer_kernel_size=2),
    "config: an even down_patch_size": vision("down_patch_size must be an odd", down_patch_size=4),
    "config: position kernels of two sides": vision(
        "must hold equal pairs", pos_embs_shapes=[None, None, None, [7, 3], [7, 7]]
    ),
    "config: even position kernels": vision(
        "pos_embs_shapes must be an odd", pos_embs_shapes=[None, None, None, [4, 4], [7, 7]]
    ),
    "config: stages of 1000 blocks": vision("at most 1000 layers", layers=[1000] * 5),
    "config: images of 100 pixels": vision("multiple of 64, got 100", image_size=100),
    # The projector and the rest
    "config: a projector of another kind": model("'resampler' is not supported", config(mm_projector_type="resampler")),
    "config: a projector that is a number": model("must be a word, got 2", config(mm_projector_type=2)),
    "config: an aspect ratio that is none": model("'anyres' is not supported", config(image_aspect_ratio="anyres")),
    # Side files
    "side file: eos_token_id a text": model("must be numbers", side("generation_config.json", eos_token_id="end")),
    "side file: eos_token_id a dict": model("are malformed", side("generation_config.json", eos_token_id={})),
    "side file: eos_token a list": model("must be a text", side("tokenizer_config.json", eos_token=["<|im_end|>"])),
    "side file: chat_template a number": model("are malformed", side("tokenizer_config.json", chat_template=3)),
    "side file: resample 9": model(
        "resample must be one of", side("preprocessor_config.json", crop_size=128, resample=9)
    ),
    "side file: rescale_factor a text": model(
        "rescale_factor must be a positive", side("preprocessor_config.json", crop_size=128, rescale_factor="1/255")
    ),
    "side file: image_mean a text": model("must be three numbers", side("preprocessor_config.json", image_mean="grey")),
    "side file: image_mean NaN": model(
        "must be three numbers", side("preprocessor_config.json", image_mean=[float("nan")] * 3)
    ),
    "side file: a nested processor of another size": model(
        "asks for images of '-1' pixels",
        side("processor_config.json", image_processor={"crop_size": {"height": -1, "width": 5}}),
    ),
    "side file: a list": model("holds no JSON object", text("generation_config.json", "[]")),
    "side file: no JSON": model("not valid JSON", text("preprocessor_config.json", "{")),
    # Chat templates
    "template: pads by format": template("uses format()", "{{ '{:>2000000000}'.format('a') }}"),
    "template: a number of gigabytes": template(
        "uses to_bytes()", "{% if (1).to_bytes(3500000000, 'big') %}{% endif %}"
    ),
    "template: squares a number": template("too large a number", doubled("7", "n.x * n.x")),
    "template: sums lists": template("computes with a list", doubled("range(99999)|list", "[n.x, n.x]|sum(start=[])")),
    "template: recursive loops": template(
        "recursive loops", "{% for a in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}"
    ),
    "template: filters in loops": template(
        "too many steps", "{% for i in range(99999) %}{% if range(99999)|list|length %}{% endif %}{% endfor %}"
    ),
    "template: imports": template("uses {% import %}", "{% import 'os' as os %}{{ os }}"),
    "template: no end of a block": template("Unexpected end of template", "{% for m in messages %}"),
    "template: a filter that is none": template("the filter explode", "{{ messages | explode }}"),
    "template: refuses": template("(not today)", "{{ raise_exception('not today') }}"),
    "template: images twice": template(
        "shows 2 images for the 1", "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"
    ),
    "template: images in capitals": template(
        "shows 0 images for the 1", "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    ),
    "template: not UTF-8": model("is not UTF-8", lambda folder: (folder / TEMPLATE).write_bytes(b"\xff\xfe{{ 1 }}")),
    "template: 70 MB": model("larger than 64 MB", lambda folder: (folder / TEMPLATE).open("wb").truncate(70 * 2**20)),
}
