"""Train the demo checkpoint from nothing, on two CPU cores, and export it in Apple's training-form layout.

    python examples/demo/train.py --work WORK --export FOLDER

Needs torch, timm and tokenizers (see README.md here); the package itself needs neither torch nor timm.

The stages follow each other, and each leaves its result in WORK, so a run that was stopped goes on where it was:

1. pictures   scenes drawn once, as the model will see them
2. tower      FastViTHD alone, taught cell by cell what is in front of it
3. features   the frozen tower's view of every picture
4. decoder    projector and Qwen2, taught conversations about those features
5. export     config, tokenizer and float32 weights

Stages 2 to 5 come twice (ROUNDS), the second going on from the first at lower learning rates.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from safetensors.torch import save_file
from timm.layers import LayerNorm2d
from timm.models.fastvit import FastVit, RepConditionalPosEnc
from timm.utils import reparameterize_model
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F

import scenes

SEED = 0
PIXELS = 256
PATCH = 64  # pixels per image token
CELLS = scenes.GRID**2  # image tokens: one per 64 x 64 pixels

# The tower: FastViTHD (layers 2, 12, 24, 4, 2; widths 96 to 1536), smaller
LAYERS = (1, 1, 2, 2, 1)
WIDTHS = (16, 32, 64, 128, 256)
VISION_WIDTH = 2 * WIDTHS[-1]

PICTURES = 20_000
CHECK_PICTURES = 500
TOWER_BATCH = 32
SAVE_EVERY = 300  # seconds

# The decoder: Qwen2, smaller
HIDDEN, DEPTH, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 256, 5, 4, 2, 64, 320
ROPE_BASE, NORM_EPS = 1e6, 1e-6
VOCABULARY = 512
LONGEST = 720  # tokens of a conversation

BATCH = 32  # conversations
TURNS = 10
EASY_STEPS = 250  # at first, pictures of one or two things only
MUON_RATE, ADAM_RATE = 3e-3, 2e-3
FEATURE_NOISE = 0.02  # of the features' standard deviation
WINDOWED = 0.35  # share of the batches that see only a bounded cache


@dataclass(frozen=True)
class Round:
    """Stages 2 to 4 once; each stage anneals its learning rate, and a later round goes on from the one before."""

    tower_steps: int
    tower_rate: float
    decoder_steps: int
    decoder_share: float  # of MUON_RATE and ADAM_RATE
    average: float  # decay of the moving average of the weights, which is what gets exported
    kinds: dict[str, float]  # how often each kind of question is asked
    crowds: tuple[float, ...]  # the shares of pictures of one, two, three and four things


ROUNDS = (
    Round(
        tower_steps=900,
        tower_rate=2e-3,
        decoder_steps=1_900,
        decoder_share=1.0,
        average=0.998,
        kinds={**scenes.KINDS, "exists": 0.2, "left": 0.09, "right": 0.09, "above": 0.09, "below": 0.09},
        crowds=(0.1, 0.25, 0.325, 0.325),
    ),
    Round(  # more of what is learnt last: finding a thing by its shape, and the relations
        tower_steps=700,
        tower_rate=1e-3,
        decoder_steps=800,
        decoder_share=0.8,
        average=0.99,
        kinds={
            "describe": 0.07, "colour": 0.22, "shape": 0.06, "size": 0.05, "count": 0.08, "exists": 0.08,
            "left": 0.11, "right": 0.11, "above": 0.11, "below": 0.11,
        },
        crowds=(0.03, 0.29, 0.34, 0.34),
    ),
)  # fmt: skip


# 1. Pictures


def view(scene: scenes.Scene, rng: random.Random, pixels: int = PIXELS) -> Image.Image:
    """The square picture of some size that the model sees: drawn at any size, padded with black, resized."""
    picture = scenes.draw(scene, pixels if rng.random() < 0.4 else rng.randint(240, 640))
    if rng.random() < 0.15:
        picture = _as_jpeg(picture, rng.randint(60, 95))
    side = max(picture.size)
    square = Image.new("RGB", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.resize((pixels, pixels), Image.Resampling.BICUBIC)


def _as_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


def _view_of_seed(seed: int, pixels: int) -> np.ndarray:
    rng = random.Random(f"view {seed}")
    picture = view(scenes.make_scene(seed), rng, pixels)
    if rng.random() < 0.5:
        picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.88, 1.12))
    return np.asarray(picture)


def render(
    seeds: Sequence[int],
    path: Path,
    pixels: int = PIXELS,
    draw: Callable[[int, int], np.ndarray] = _view_of_seed,
) -> np.ndarray:
    """The pictures of all seeds, as one array of bytes in a file."""
    shape = (len(seeds), pixels, pixels, 3)
    if not path.exists():
        unfinished = path.with_suffix(".part")
        array = np.memmap(unfinished, np.uint8, "w+", shape=shape)
        with Pool() as pool:
            for i, picture in enumerate(pool.imap(partial(draw, pixels=pixels), seeds, chunksize=64)):
                array[i] = picture
        array.flush()
        unfinished.rename(path)
    return np.memmap(path, np.uint8, "r", shape=shape)


# 2. The tower


def make_tower() -> FastVit:
    """FastViTHD in its training form: every block with its parallel branches, each with BatchNorm."""
    position = partial(RepConditionalPosEnc, spatial_shape=(7, 7))
    tower = FastVit(
        layers=LAYERS,
        embed_dims=WIDTHS,
        mlp_ratios=(4,) * 5,
        token_mixers=("repmixer",) * 3 + ("attention",) * 2,
        downsamples=(False, True, True, True, True),
        se_downsamples=(False,) * 5,
        pos_embs=(None, None, None, position, position),
        norm_layer=partial(LayerNorm2d, eps=1e-5),
        lkc_use_act=True,
        stem_use_scale_branch=False,
        layer_scale_init_value=0.1,  # 1e-5 is for deep towers
        num_classes=0,
        global_pool="",
    )
    return tower.to(memory_format=torch.channels_last)  # twice as fast as torch's default on a CPU


def see(tower: FastVit, pictures: np.ndarray) -> Tensor:
    """Features (pictures, image tokens, VISION_WIDTH) of pictures in bytes."""
    return tower.forward_features(pixels_of(pictures)).flatten(2).transpose(1, 2)


def pixels_of(pictures: np.ndarray) -> Tensor:
    """What a tower takes, (pictures, 3, height, width) in [0, 1], of pictures in bytes."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255


CELL_TARGETS = {  # what is guessed of a cell, and how many answers there are
    "thing": 2,
    "shape": len(scenes.SHAPES),
    "colour": len(scenes.COLOURS),
    "size": len(scenes.RADII),
    "place": CELLS,  # the cell's own place in the grid: relations are about places
}
IGNORE = -100


def cell_targets(seed: int) -> np.ndarray:
    """What each cell's token should know: (CELLS, 5) class numbers, IGNORE where a cell holds no thing."""
    targets = np.full((CELLS, len(CELL_TARGETS)), IGNORE)
    targets[:, 0] = 0
    targets[:, 4] = range(CELLS)
    for thing in scenes.make_scene(seed).things:
        known = (
            1,
            scenes.SHAPES.index(thing.shape),
            list(scenes.COLOURS).index(thing.colour),
            list(scenes.RADII).index(thing.size),
        )
        targets[thing.row * scenes.GRID + thing.column, :4] = known
    return targets


def cosine_rate(step: int, steps: int, warm_up: int) -> float:
    """The learning rate's share of its peak: up in a line, down along a cosine."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * min(1, (step - warm_up) / (steps - warm_up))))


def set_rates(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("peak", group["lr"])
            group["lr"] = group["peak"] * share


def learn(loss: Tensor, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """One step of every optimizer along the loss's clipped gradients."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()


def fast() -> torch.autocast:
    """Products in bfloat16 where the processor has them; elsewhere they take several times as long as in float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported())


def save(path: Path, **parts: object) -> None:
    """Write a checkpoint so that being stopped halfway leaves the previous one whole."""
    torch.save(parts, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def train_tower(work: Path, number: int, pictures: np.ndarray, check: np.ndarray) -> FastVit:
    """Teach the tower, with a throw-away linear head on each image token.

    The language loss alone hardly reaches the pixels; so taught, the tower knows its shapes within minutes.
    """
    plan, done = ROUNDS[number], sum(plan.tower_steps for plan in ROUNDS[:number])
    torch.manual_seed(SEED)
    tower, head = make_tower(), nn.Linear(VISION_WIDTH, sum(CELL_TARGETS.values()))
    model = nn.ModuleList([tower, head])
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.tower_rate, weight_decay=0.02)
    path, step, spent = work / f"tower-{number}.pt", 0, 0.0
    if number > 0:
        model.load_state_dict(torch.load(work / f"tower-{number - 1}.pt")["model"])
    if path.exists():
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent = saved["step"], saved["spent"]
    targets = np.stack([cell_targets(seed) for seed in scenes.TRAINING_SEEDS[: len(pictures)]])
    started, saved_at = time.time() - spent, time.time()
    while step < plan.tower_steps:
        set_rates([optimizer], cosine_rate(step, plan.tower_steps, warm_up=50))
        rows = np.random.default_rng((SEED, done + step)).integers(len(pictures), size=TOWER_BATCH)
        loss = cell_loss(head(see(tower, pictures[rows])), torch.from_numpy(targets[rows]))
        learn(loss, model, [optimizer])
        step += 1
        if step % 200 == 0 or step == plan.tower_steps:
            score = check_tower(tower, head, check)
            print(f"tower {step} loss {loss.item():.4f} {score} {time.time() - started:.0f} s", flush=True)
        if step == plan.tower_steps or time.time() - saved_at > SAVE_EVERY:
            save(
                path,
                model=model.state_dict(),
                optimizer=optimizer.state_dict(),
                step=step,
                spent=time.time() - started,
            )
            saved_at = time.time()
    return tower.eval().requires_grad_(False)


def cell_loss(guesses: Tensor, targets: Tensor) -> Tensor:
    parts = guesses.split(list(CELL_TARGETS.values()), dim=-1)
    return sum(F.cross_entropy(part.flatten(0, 1), targets[..., i].flatten()) for i, part in enumerate(parts))


@torch.no_grad()
def check_tower(tower: FastVit, head: nn.Linear, pictures: np.ndarray) -> dict[str, float]:
    """The share of right guesses over held-out pictures, for each of CELL_TARGETS."""
    tower.eval()
    guesses = torch.cat([head(see(tower, pictures[i : i + 50])) for i in range(0, len(pictures), 50)])
    tower.train()
    targets = torch.from_numpy(np.stack([cell_targets(seed) for seed in scenes.HELD_OUT_SEEDS[: len(pictures)]]))
    parts = guesses.split(list(CELL_TARGETS.values()), dim=-1)
    right = {}
    for i, name in enumerate(CELL_TARGETS):
        asked = targets[..., i] != IGNORE
        right[name] = round((parts[i].argmax(-1) == targets[..., i])[asked].double().mean().item(), 4)
    return right


# 3. Features


@torch.no_grad()
def features_of(tower: FastVit, pictures: np.ndarray, path: Path) -> Tensor:
    """What the trained tower makes of every picture, kept so that teaching the decoder needs no tower."""
    if not path.exists():
        parts = [see(tower, pictures[i : i + 50]).half() for i in range(0, len(pictures), 50)]
        save(path, features=torch.cat(parts))
    return torch.load(path)["features"]


# 4a. The tokenizer

ENDOFTEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEFAULT_SYSTEM = "You are a helpful assistant."
OTHER_SYSTEMS = (
    "You are a friendly assistant.", "You describe pictures.", "Answer briefly.", "Answer in one short sentence.",
    "You are a careful observer.", "Be concise.", "You are a robot that looks at images.",
)  # fmt: skip


def make_tokenizer(path: Path) -> Tokenizer:
    """A byte-level BPE tokenizer as Qwen2's, learnt from the questions and answers."""
    if not path.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY - 3, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator(_texts(), trainer)
        tokenizer.add_special_tokens([ENDOFTEXT, IM_START, IM_END])
        tokenizer.save(str(path))
    return Tokenizer.from_file(str(path))


def _texts() -> Iterator[str]:
    rng = random.Random(SEED)
    for seed in scenes.TRAINING_SEEDS[:3000]:
        for question in scenes.questions(scenes.make_scene(seed), rng, 10):
            yield question.text
            yield scenes.casual(question.text, rng)
            yield question.answer
    for _ in range(50):
        yield from (DEFAULT_SYSTEM, *OTHER_SYSTEMS, "system\n", "user\n", "assistant\n")


class Encoder:
    """Token ids of the pieces of a conversation, each piece encoded once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.token_to_id(IM_END)
        self.ids = lru_cache(maxsize=None)(lambda text: tokenizer.encode(text).ids)

    def before_image(self, system: str | None) -> list[int]:
        turn = f"{IM_START}system\n{system}{IM_END}\n" if system is not None else ""
        return self.ids(f"{turn}{IM_START}user\n")

    def question(self, text: str, first: bool) -> list[int]:
        """From the end of the image, or of the turn before, to where the answer begins."""
        opening = self.ids("\n") if first else self.ids(f"\n{IM_START}user\n")
        return opening + self.ids(text) + self.ids(f"{IM_END}\n{IM_START}assistant\n")

    def answer(self, text: str) -> list[int]:
        return [*self.ids(text), self.end]


# 4b. Projector and decoder


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HEADS * HEAD_DIM)
        self.k_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM)
        self.v_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, HIDDEN, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None) -> Tensor:
        queries, keys, values = (
            project(x).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        if cache is not None:
            keys, values = cache.write(self, keys, values)
        mixed = F.scaled_dot_product_attention(
            queries,
            keys.repeat_interleave(HEADS // KV_HEADS, dim=1),
            values.repeat_interleave(HEADS // KV_HEADS, dim=1),
            attn_mask=mask,
            is_causal=mask is None,
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(x.dtype)


def rotation_at(positions: Tensor) -> tuple[Tensor, Tensor]:
    rates = ROPE_BASE ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = positions[..., None, :, None] * rates
    return angles.cos(), angles.sin()


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.up_proj = nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.down_proj = nn.Linear(INTERMEDIATE, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), Mlp()
        self.input_layernorm = nn.RMSNorm(HIDDEN, eps=NORM_EPS)
        self.post_attention_layernorm = nn.RMSNorm(HIDDEN, eps=NORM_EPS)

    def forward(self, x: Tensor, *rest) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), *rest)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Qwen2 with the projector in front, its parts named as in Apple's checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.mm_projector = nn.Sequential(nn.Linear(VISION_WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN))
        self.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList([Layer() for _ in range(DEPTH)])
        self.norm = nn.RMSNorm(HIDDEN, eps=NORM_EPS)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.05 / math.sqrt(2 * DEPTH) if deep else 0.05)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def embed(self, ids: Tensor, features: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
        """Embeddings of ids, the projected features laid over each row's image tokens."""
        x = self.embed_tokens(ids)
        if features is not None:
            rows = torch.arange(len(ids))[:, None]
            columns = starts[:, None] + torch.arange(features.shape[1])
            x = x.index_put((rows, columns), self.mm_projector(features).to(x.dtype))
        return x

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        rotation = rotation_at(positions)
        for layer in self.layers:
            x = layer(x, rotation, mask, cache)
        return self.norm(x)

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embed_tokens.weight)


# 4c. Conversations


def conversation(
    encoder: Encoder, seed: int, rng: random.Random, kinds: dict[str, float], tokens: int
) -> tuple[list[int], list[int], int, int]:
    """Ids, their targets (IGNORE but for answers), where the image starts, and where the first prompt ends."""
    draw = rng.random()
    system = DEFAULT_SYSTEM if draw < 0.65 else None if draw < 0.8 else rng.choice(OTHER_SYSTEMS)
    ids = list(encoder.before_image(system))
    start = len(ids)
    ids += [0] * tokens
    targets, prompt = [IGNORE] * len(ids), 0
    careless = rng.random() < 0.15
    for question in scenes.questions(scenes.make_scene(seed), rng, TURNS, kinds):
        asked = encoder.question(scenes.casual(question.text, rng) if careless else question.text, first=prompt == 0)
        answer = encoder.answer(question.answer)
        ids += asked + answer
        targets += [IGNORE] * len(asked) + answer
        prompt = prompt or len(ids) - len(answer)
    return ids, targets, start, prompt


def batch_of(
    encoder: Encoder, seeds: list[int], rng: random.Random, kinds: dict[str, float], tokens: int = CELLS
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Conversations about the pictures of some seeds, of so many image tokens each, padded on the right."""
    rows = [conversation(encoder, seed, rng, kinds, tokens) for seed in seeds]
    longest = max(len(row[0]) for row in rows)
    ids = torch.tensor([row[0] + [0] * (longest - len(row[0])) for row in rows])
    targets = torch.tensor([row[1] + [IGNORE] * (longest - len(row[1])) for row in rows])
    return ids, targets, torch.tensor([row[2] for row in rows]), torch.tensor([row[3] for row in rows])


def window_mask(queries: Tensor, slots: int, protected: Tensor, window: int) -> Tensor:
    """Causal, but of what lies after a row's protected beginning only the last `window` tokens are seen.

    So trained, the model goes on talking when the KV cache is bounded (`max_kv_size`).
    """
    queries, keys = queries[:, :, None], torch.arange(slots)
    seen = (keys <= queries) & ((keys < protected[:, None, None]) | (keys > queries - window))
    return seen[:, None]


def answer_loss(decoder: Decoder, features: Tensor, batch: tuple[Tensor, ...], rng: random.Random) -> Tensor:
    ids, targets, starts, prompts = batch
    positions = torch.arange(ids.shape[1])[None]
    mask = None
    if rng.random() < WINDOWED:
        protected = prompts if rng.random() < 0.5 else starts + features.shape[1]
        mask = window_mask(positions, ids.shape[1], protected, rng.randint(40, 96))
    features = features + FEATURE_NOISE * features.std() * torch.randn_like(features)
    with fast():
        hidden = decoder(decoder.embed(ids, features, starts), positions, mask)
        rows, columns = (targets != IGNORE).nonzero(as_tuple=True)
        logits = decoder.logits(hidden[rows, columns - 1])
    return F.cross_entropy(logits.float(), targets[rows, columns])


def pick_seeds(step: int, crowds: tuple[float, ...], by_count: dict[int, list[int]], rng: random.Random) -> list[int]:
    """Pictures of a step: easy ones first, then more of the crowded ones, whose answers take longest to learn."""
    shares = (0.6, 0.4, 0, 0) if step < EASY_STEPS else crowds
    return [rng.choice(by_count[count]) for count in rng.choices((1, 2, 3, 4), shares, k=BATCH)]


def decoder_optimizers(decoder: Decoder) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the rest."""
    matrices = [p for name, p in decoder.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in decoder.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


@torch.no_grad()
def average_in(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """One step of the moving average of the weights."""
    keep = min(decay, step / (step + 10))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)


def train_decoder(work: Path, number: int, encoder: Encoder, features: Tensor, check: Tensor) -> Decoder:
    """Teach projector and decoder; returns the averaged weights."""
    plan, done = ROUNDS[number], sum(plan.decoder_steps for plan in ROUNDS[:number])
    torch.manual_seed(SEED)
    decoder = Decoder()
    if number > 0:
        decoder.load_state_dict(torch.load(work / f"decoder-{number - 1}.pt")["average"])
    average = copy.deepcopy(decoder).requires_grad_(False)
    optimizers = decoder_optimizers(decoder)
    path, step, spent = work / f"decoder-{number}.pt", 0, 0.0
    if path.exists():
        saved = torch.load(path)
        decoder.load_state_dict(saved["decoder"])
        average.load_state_dict(saved["average"])
        for optimizer, state in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(state)
        step, spent = saved["step"], saved["spent"]
    by_count: dict[int, list[int]] = {count: [] for count in range(1, 5)}
    for seed in scenes.TRAINING_SEEDS[: len(features)]:
        by_count[len(scenes.make_scene(seed).things)].append(seed)
    for layer in decoder.layers:
        layer.compile(dynamic=True)  # a fifth faster
    started, saved_at, losses = time.time() - spent, time.time(), []
    while step < plan.decoder_steps:
        set_rates(optimizers, plan.decoder_share * cosine_rate(step, plan.decoder_steps, warm_up=60))
        rng = random.Random(f"step {SEED} {done + step}")
        torch.manual_seed(done + step)
        seeds = pick_seeds(done + step, plan.crowds, by_count, rng)
        loss = answer_loss(decoder, features[seeds].float(), batch_of(encoder, seeds, rng, plan.kinds), rng)
        learn(loss, decoder, optimizers)
        step += 1
        average_in(average, decoder, step, plan.average)
        losses.append(loss.item())
        if step % 25 == 0:
            print(f"decoder {step} loss {np.mean(losses[-25:]):.4f} {time.time() - started:.0f} s", flush=True)
        if step == plan.decoder_steps or time.time() - saved_at > SAVE_EVERY:
            save(
                path,
                decoder=decoder.state_dict(),
                average=average.state_dict(),
                optimizers=[optimizer.state_dict() for optimizer in optimizers],
                step=step,
                spent=time.time() - started,
            )
            print(f"decoder {step} {report(average, encoder, check[:150], turns=2)}", flush=True)
            saved_at = time.time()
    return average


# 4d. Asking it


class Cache:
    """Keys and values of a batch whose rows are of unequal length: a token's slot is its position."""

    def __init__(self, rows: int) -> None:
        self.rows, self.slots, self.buffers = rows, torch.zeros(rows, 1, dtype=torch.long), {}

    def write(self, owner: nn.Module, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if owner not in self.buffers:
            self.buffers[owner] = [x.new_zeros(self.rows, KV_HEADS, LONGEST, HEAD_DIM) for x in (keys, values)]
        index = self.slots[:, None, :, None].expand_as(keys)
        for buffer, new in zip(self.buffers[owner], (keys, values)):
            buffer.scatter_(2, index, new)
        used = int(self.slots.max()) + 1
        return tuple(buffer[:, :, :used] for buffer in self.buffers[owner])


@torch.no_grad()
def talk(
    decoder: Decoder, encoder: Encoder, features: Tensor, asked: list[list[str]], window: int | None = None
) -> list[list[str]]:
    """Greedy answers to each row's questions in turn, each row one conversation about one picture."""
    rows, cache = len(asked), Cache(len(asked))
    answers: list[list[str]] = [[] for _ in asked]
    before = encoder.before_image(DEFAULT_SYSTEM)
    filled = torch.zeros(rows, dtype=torch.long)
    protected = None

    def feed(chunks: list[list[int]], image: bool) -> Tensor:
        """Reads every row's chunk; returns the logits after its last token."""
        nonlocal filled
        lengths = torch.tensor([len(chunk) for chunk in chunks])
        ids = torch.tensor([chunk + [0] * (int(lengths.max()) - len(chunk)) for chunk in chunks])
        cache.slots = (filled[:, None] + torch.arange(ids.shape[1])).clamp(max=LONGEST - 1)
        starts = torch.full((rows,), len(before))
        x = decoder.embed(ids, features.float(), starts) if image else decoder.embed(ids)
        whole = window is None or protected is None
        mask = window_mask(
            cache.slots, int(cache.slots.max()) + 1, filled if whole else protected, LONGEST if whole else window
        )
        hidden = decoder(x, cache.slots, mask, cache)
        filled = filled + lengths
        return decoder.logits(hidden[torch.arange(rows), (lengths - 1).clamp(min=0)])

    for turn in range(len(asked[0])):
        chunks = [encoder.question(texts[turn], first=turn == 0) for texts in asked]
        if turn == 0:
            chunks = [before + [0] * features.shape[1] + chunk for chunk in chunks]
        logits = feed(chunks, image=turn == 0)
        protected = filled if protected is None else protected
        said: list[list[int]] = [[] for _ in asked]
        ended = [False] * rows
        for _ in range(48):
            chosen = logits.argmax(-1).tolist()
            chunks = []
            for row, token in enumerate(chosen):
                chunks.append([] if ended[row] else [token])
                ended[row] = ended[row] or token == encoder.end
                said[row] += chunks[row]
            logits = feed(chunks, image=False)  # the end of the turn is read too
            if all(ended):
                break
        for row, ids in enumerate(said):
            answers[row].append(encoder.tokenizer.decode(ids))
    return answers


def report(
    decoder: Decoder,
    encoder: Encoder,
    features: Tensor,
    turns: int,
    window: int | None = None,
    seeds: Sequence[int] = scenes.HELD_OUT_SEEDS,
) -> dict[str, float]:
    """Exact matches over held-out scenes: by turn, and by kind over all turns."""
    seeds = seeds[: len(features)]
    asked = [scenes.questions(scenes.make_scene(seed), random.Random(f"ask {seed}"), turns) for seed in seeds]
    answers = talk(decoder, encoder, features, [[q.text for q in row] for row in asked], window)
    tally: dict[str, list[bool]] = {}
    for row, said in zip(asked, answers):
        for turn, (question, answer) in enumerate(zip(row, said)):
            for name in (f"turn {turn + 1}", question.kind):
                tally.setdefault(name, []).append(answer == question.answer)
    return {name: round(100 * float(np.mean(right)), 1) for name, right in sorted(tally.items())}


# 5. Export


def apple_name(name: str) -> str:
    """Apple's name of one of timm's weights: one flat `network` in place of stages, and older words."""
    for ours, apples in (
        ("conv_kxk", "rbr_conv"), ("conv_scale", "rbr_scale"), ("identity", "rbr_skip"), ("large_conv", "lkb_origin"),
        ("stem.", "patch_embed."), ("final_conv.", "conv_exp."), ("se.fc1", "se.reduce"), ("se.fc2", "se.expand"),
        ("mlp.", "convffn."), (".gamma", ""),
    ):  # fmt: skip
        name = name.replace(ours, apples)
    stage = re.match(r"stages\.(\d)\.(blocks|downsample\.proj|pos_emb\.pos_enc)", name)
    if stage:
        index = NETWORK_PLACES[int(stage[1])][stage[2]]
        suffix = {"blocks": "", "downsample.proj": ".proj", "pos_emb.pos_enc": ".pe"}[stage[2]]
        name = f"network.{index}{suffix}{name[stage.end() :]}"
    return f"model.vision_tower.vision_tower.model.{name}"


NETWORK_PLACES = (  # where a stage's parts stand in Apple's flat `network`
    {"blocks": 0},
    {"downsample.proj": 1, "blocks": 2},
    {"downsample.proj": 3, "blocks": 4},
    {"downsample.proj": 5, "pos_emb.pos_enc": 6, "blocks": 7},
    {"downsample.proj": 8, "pos_emb.pos_enc": 9, "blocks": 10},
)


def export(folder: Path, tower: FastVit, decoder: Decoder, encoder: Encoder) -> None:
    """Write the checkpoint, in float32 and not yet fused, the way Apple lays out its own."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {apple_name(name): value for name, value in tower.state_dict().items()}
    weights |= {f"model.{name}": value for name, value in decoder.state_dict().items()}
    weights = {name: value.detach().clone().contiguous() for name, value in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in side_files(encoder.tokenizer).items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def side_files(tokenizer: Tokenizer) -> dict[str, object]:
    """Contents of the files beside the weights."""
    model = json.loads(tokenizer.to_str())["model"]
    ids = {token: tokenizer.token_to_id(token) for token in (ENDOFTEXT, IM_START, IM_END)}
    return {
        "config.json": config(ids),
        "generation_config.json": {
            "bos_token_id": ids[ENDOFTEXT],
            "do_sample": False,
            "eos_token_id": [ids[IM_END], ids[ENDOFTEXT]],
            "pad_token_id": ids[ENDOFTEXT],
        },
        "vocab.json": {token: model["vocab"][token] for token in sorted(model["vocab"], key=model["vocab"].get)},
        "merges.txt": "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in model["merges"]),
        "added_tokens.json": ids,
        "tokenizer_config.json": {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(index): {
                    "content": token, "lstrip": False, "normalized": False,
                    "rstrip": False, "single_word": False, "special": True,
                }
                for token, index in ids.items()
            },
            "additional_special_tokens": [IM_START, IM_END],
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": IM_END,
            "errors": "replace",
            "model_max_length": 8192,
            "pad_token": ENDOFTEXT,
            "padding_side": "right",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    }  # fmt: skip


CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def config(ids: dict[str, int]) -> dict[str, object]:
    """Apple's config.json, with a vision_config that says what its tower's name alone does not."""
    return {
        "architectures": ["LlavaQwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": ids[ENDOFTEXT],
        "eos_token_id": ids[IM_END],
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 8192,
        "max_window_layers": DEPTH,
        "mm_hidden_size": VISION_WIDTH,
        "mm_patch_merge_type": "flat",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": f"mobileclip_l_{PIXELS}",
        "model_type": "llava_qwen2",
        "num_attention_heads": HEADS,
        "num_hidden_layers": DEPTH,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_BASE,
        "sliding_window": 8192,
        "tie_word_embeddings": True,
        "tokenizer_model_max_length": 8192,
        "tokenizer_padding_side": "right",
        "torch_dtype": "float32",
        "unfreeze_mm_vision_tower": True,
        "use_cache": True,
        "use_mm_proj": True,
        "use_sliding_window": False,
        "vision_config": {
            "cls_ratio": 2.0,
            "down_patch_size": 7,
            "down_stride": 2,
            "downsamples": [True] * 5,
            "embed_dims": list(WIDTHS),
            "hidden_size": WIDTHS[-1],
            "image_size": PIXELS,
            "intermediate_size": VISION_WIDTH,
            "layer_scale_init_value": 0.1,
            "layers": list(LAYERS),
            "mlp_ratios": [4] * 5,
            "num_classes": 0,
            "patch_size": 64,
            "pos_embs_shapes": [None, None, None, [7, 7], [7, 7]],
            "repmixer_kernel_size": 3,
            "token_mixers": ["repmixer"] * 3 + ["attention"] * 2,
        },
        "vocab_size": VOCABULARY,
    }


@torch.no_grad()
def write_reference(path: Path, tower: FastVit, decoder: Decoder, encoder: Encoder) -> None:
    """What the exported weights compute on one held-out picture, to hold any port against."""
    scene = scenes.make_scene(scenes.HELD_OUT_SEEDS[0])
    picture = np.asarray(view(scene, random.Random(SEED)))
    features = see(tower, picture[None])
    before = encoder.before_image(DEFAULT_SYSTEM)
    ids = before + [0] * CELLS + encoder.question("What are these?", first=True)
    x = decoder.embed(torch.tensor([ids]), features, torch.tensor([len(before)]))
    logits = decoder.logits(decoder(x, torch.arange(len(ids))[None]))
    said = talk(decoder, encoder, features, [["What are these?"]])[0][0]
    ids[len(before) : len(before) + CELLS] = [-200] * CELLS  # LLaVA's number for an image token
    np.savez_compressed(
        path,
        picture=(picture / np.float32(255)).astype(np.float32),
        tower_features=features[0].numpy(),
        projected_features=decoder.mm_projector(features)[0].numpy(),
        ids=np.array(ids),
        logits=logits[0].numpy(),
        answer=said,
        right_answer=scenes.describe(scene.things),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for each stage's results")
    parser.add_argument("--export", type=Path, required=True, help="folder for the checkpoint")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    pictures = render(scenes.TRAINING_SEEDS[:PICTURES], args.work / "pictures.u8")
    check = render(scenes.HELD_OUT_SEEDS[:CHECK_PICTURES], args.work / "check.u8")
    encoder = Encoder(make_tokenizer(args.work / "tokenizer.json"))
    for number in range(len(ROUNDS)):
        tower = train_tower(args.work, number, pictures, check)
        fused = reparameterize_model(tower)  # the same function: it runs twice as fast
        features = features_of(fused, pictures, args.work / f"features-{number}.pt")
        check_features = features_of(fused, check, args.work / f"check-features-{number}.pt")
        decoder = train_decoder(args.work, number, encoder, features, check_features)
        export(args.export, tower, decoder, encoder)
        write_reference(args.export / "reference.npz", tower, decoder, encoder)
    print("all ten turns", report(decoder, encoder, check_features, TURNS), flush=True)
    print("within 64 tokens", report(decoder, encoder, check_features, TURNS, window=64), flush=True)


if __name__ == "__main__":
    main()
