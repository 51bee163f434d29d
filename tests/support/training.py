"""A little training: samples about the images in examples/, and a model that learns them."""

from mlx_fastvlm import load
from mlx_fastvlm.tuner import AdapterConfig, TrainingOptions, encode_all, train
from mlx_fastvlm.tuner.conversations import conversation
from tests.support.paths import ROOT

IMAGES = ROOT / "examples" / "images"
ANSWERS = ("A fox.", "Two owls.", "The moon.", "Nobody at all.", "My aunt.", "Seven bees.", "A snail.")
LORA = AdapterConfig(rank=4, scale=4.0, dropout=0.1)


def rows(count=None):
    return [
        {"image": f"shapes-{i + 1}.png", "question": "Who lives here?", "answer": answer}
        for i, answer in enumerate(ANSWERS[:count])
    ]


def samples(processor, count=None, **how):
    found = [conversation(row, f"train.jsonl, row {i}", IMAGES) for i, row in enumerate(rows(count), 1)]
    return encode_all(found, processor, max_seq_length=500, **how)[0]


def trained(checkpoint, *, valid=0, report=lambda report: None, train_set=None, change=None, **options):
    """A model that was trained, and the reports on the way."""
    model, processor = load(checkpoint, dtype="float32")
    if change:
        change(model)
    told = []

    def tell(found):
        told.append(found)
        report(found)

    data = samples(processor) if train_set is None else train_set
    options = {"adapters": LORA, "learning_rate": 1e-3, "batch_size": 2, "steps_per_report": 1, **options}
    train(model, processor, data, data[:valid], TrainingOptions(**options), report=tell)
    return model, told
