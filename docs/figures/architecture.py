"""Draws docs/figures/architecture.svg: how an image becomes text, with the shapes of FastVLM-0.5B.

    python docs/figures/architecture.py

The numbers come from the configuration, as the model's do. Needs only the package.
"""

from pathlib import Path
from xml.sax.saxutils import escape

from mlx_fastvlm import TextConfig, VisionConfig

VISION = VisionConfig()
TEXT = TextConfig(
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    vocab_size=151936,
)
WIDTH, HEIGHT = 1180, 560
INK, PAPER, LINE = "#1c2733", "#ffffff", "#8794a3"
CONVOLUTION, ATTENTION, LANGUAGE, IMAGE, PLAIN = "#cfe3fb", "#ffd9b8", "#d5efd3", "#fff0b3", "#eceff3"


class Drawing:
    def __init__(self):
        self.parts = []

    def box(self, x, y, width, height, fill):
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" fill="{fill}" stroke="{LINE}"/>'
        )

    def text(self, x, y, words, size=13, weight="normal", anchor="middle", colour=INK):
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
            f'fill="{colour}">{escape(words)}</text>'
        )

    def arrow(self, *points):
        path = " ".join(f"{'L' if i else 'M'}{x:g} {y:g}" for i, (x, y) in enumerate(points))
        self.parts.append(f'<path d="{path}" fill="none" stroke="{INK}" stroke-width="1.4" marker-end="url(#head)"/>')

    def svg(self):
        body = "\n".join(self.parts)
        return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"
  width="{WIDTH}" height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif"
  role="img" aria-label="How an image becomes text in FastVLM">
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>
<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="{PAPER}"/>
{body}
</svg>
"""


def tower(drawing):
    """The upper row: image, stem, stages, features. Boxes shrink with the feature maps, on a log scale."""
    drawing.text(30, 34, "FastViTHD, the vision tower (models/vision.py)", 16, "bold", "start")
    drawing.text(30, 54, "shapes are height x width x channels", 12, anchor="start", colour="#51606f")
    for x, words, fill in ((820, "convolutions", CONVOLUTION), (960, "self-attention too", ATTENTION)):
        drawing.box(x, 22, 16, 16, fill)
        drawing.text(x + 24, 35, words, 12, anchor="start")
    middle, x, gap, width = 160, 30, 18, 124
    side, stem = VISION.image_size // 4, VISION.embed_dims[0]
    steps = [
        ("image", [f"{VISION.image_size} x {VISION.image_size} x 3"], PLAIN, 175),
        ("stem", ["3 convolutions", f"{side} x {side} x {stem}"], CONVOLUTION, 145),
    ]
    for index, (blocks, channels) in enumerate(zip(VISION.layers, VISION.embed_dims)):
        side //= 2 if VISION.downsamples[index] else 1
        attention = VISION.token_mixers[index] == "attention"
        lines = [f"{blocks} {'attention blocks' if attention else 'RepMixer'}", f"{side} x {side} x {channels}"]
        steps.append((f"stage {index + 1}", lines, ATTENTION if attention else CONVOLUTION, 145 - 17 * index))
    steps.append(("final conv", ["3x3, SE", f"{side} x {side} x {VISION.hidden_size}"], CONVOLUTION, 77))
    for i, (name, lines, fill, height) in enumerate(steps):
        if i:
            drawing.arrow((x, middle), (x + gap, middle))
            x += gap
        drawing.box(x, middle - height / 2, width, height, fill)
        top = middle - 8.5 * len(lines) + 4
        drawing.text(x + width / 2, top, name, 14, "bold")
        for n, line in enumerate(lines, 1):
            drawing.text(x + width / 2, top + 17 * n, line, 12.5)
        x += width
    return x - width / 2, middle + steps[-1][-1] / 2, side * side


def language(drawing, x, y, tokens):
    """The lower rows: projector, the sequence, the decoder, the answer; (x, y) is where the features come from."""
    hidden, vocabulary = TEXT.hidden_size, TEXT.vocab_size
    drawing.text(30, 296, "Projector (models/projector.py) and Qwen2 decoder (models/language.py)", 16, "bold", "start")
    drawing.box(880, 318, 270, 62, LANGUAGE)
    drawing.text(1015, 339, "projector", 14, "bold")
    drawing.text(1015, 356, f"Linear, GELU, Linear: {VISION.hidden_size} to {hidden}", 12)
    drawing.text(1015, 373, f"{tokens} tokens x {hidden}", 12)
    drawing.arrow((x, y), (x, 317))
    drawing.text(x - 10, 268, f"{tokens} tokens x {VISION.hidden_size}, in reading order", 12, anchor="end")
    # The sequence.
    parts = [
        ("<|im_start|>user", PLAIN, 150),
        (f"{tokens} image tokens", IMAGE, 330),
        ("What is this?", PLAIN, 120),
        ("<|im_start|>assistant", PLAIN, 170),
    ]
    x = 30
    for words, fill, width in parts:
        drawing.box(x, 318, width, 34, fill)
        drawing.text(x + width / 2, 340, words, 13)
        x += width
    drawing.arrow((880, 349), (x + 40, 349), (x + 40, 375), (345, 375), (345, 354))
    drawing.text(595, 370, "the projected features are the image tokens' embeddings", 12)
    drawing.text(112, 398, f"(sequence length) x {hidden}", 12, anchor="start")
    # The decoder.
    drawing.arrow((100, 353), (100, 416))
    drawing.box(30, 418, 470, 96, LANGUAGE)
    drawing.text(265, 438, f"{TEXT.num_hidden_layers} decoder layers", 14, "bold")
    heads = f"{TEXT.num_attention_heads} query, {TEXT.num_key_value_heads} key-value heads of {TEXT.head_dim}"
    drawing.text(265, 459, f"RMSNorm, attention with RoPE: {heads}", 12)
    drawing.text(265, 478, f"RMSNorm, SwiGLU perceptron: {hidden} to {TEXT.intermediate_size} to {hidden}", 12)
    drawing.text(265, 500, "KV cache (cache/): each token is computed once", 12, colour="#51606f")
    drawing.arrow((500, 466), (548, 466))
    drawing.box(550, 436, 150, 60, LANGUAGE)
    drawing.text(625, 461, "norm, head", 14, "bold")
    drawing.text(625, 481, f"{hidden} to {vocabulary}", 12)
    drawing.arrow((700, 466), (748, 466))
    drawing.box(750, 436, 150, 60, PLAIN)
    drawing.text(825, 461, "next token", 14, "bold")
    drawing.text(825, 481, "sampling.py", 12)
    drawing.arrow((900, 466), (948, 466))
    drawing.box(950, 436, 200, 60, PLAIN)
    drawing.text(1050, 461, "text.py: text", 14, "bold")
    drawing.text(1050, 481, '"A cat on a sofa."', 12)
    drawing.arrow((825, 496), (825, 536), (265, 536), (265, 516))
    drawing.text(545, 531, "until the answer ends", 12)


def draw():
    """The whole drawing, as SVG."""
    drawing = Drawing()
    language(drawing, *tower(drawing))
    return drawing.svg()


if __name__ == "__main__":
    (Path(__file__).parent / "architecture.svg").write_text(draw(), encoding="utf-8")
