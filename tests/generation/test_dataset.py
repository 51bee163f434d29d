"""Data sets through an engine: a record for each image, nothing asked twice, and nothing mixed."""

import fcntl
import json
import random
import re
import tarfile
import threading

import pytest
from PIL import Image

from mlx_fastvlm import Engine, batch_decide, generate, load
from mlx_fastvlm.data.prefetch import Prefetch
from mlx_fastvlm.data.shards import Shard
from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.generation.dataset import caption_dataset
from mlx_fastvlm.generation.text import TextStream
from tests.support import guidance, small
from tests.support.datasets import KINDS, encoded, job, read_records, write_tar

IMAGES = [Image.fromarray(small.odd_image(70, 50)), Image.new("RGB", (40, 60), "white"), Image.new("RGB", (9, 9))]


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def counts(summary):
    return summary.answered, summary.errors


def test_a_folder_of_images(wide, folder, tmp_path):
    output = tmp_path / "captions.jsonl"
    options = {"max_tokens": 8, "image_size": 64}
    assert counts(caption_dataset(*wide, job(folder, output, batch_size=2), **options)) == (3, 1)
    *captions, broken = lines(output)
    assert [(r["key"], r["text"], r["finish_reason"], r["generation_tokens"]) for r in captions] == [
        (f"{i}.png", generate(*wide, "What?", image, **options), "length", 8) for i, image in enumerate(IMAGES)
    ]
    assert broken["key"] == "broken.jpg"
    assert "not an image" in broken["error"]
    assert len({(record["model"], record["prompt"]) for record in [*captions, broken]}) == 1


def test_a_second_run_does_only_what_is_missing(wide, folder, tmp_path, asked):
    output = tmp_path / "captions.jsonl"
    caption_dataset(*wide, job(folder, output), max_tokens=4)
    whole = output.read_bytes()
    again = caption_dataset(*wide, job(folder, output), max_tokens=4)
    assert (counts(again), again.skipped, again.failed_before) == ((0, 0), 4, 1)
    assert output.read_bytes() == whole
    kept = whole.index(b"\n") + 1
    output.write_bytes(whole[: kept + 9])  # as a crash leaves it
    asked.clear()
    assert counts(caption_dataset(*wide, job(folder, output), max_tokens=4)) == (2, 1)
    assert output.read_bytes() == whole
    assert len(asked) == 2


def test_two_processes_that_write_to_one_file(wide, folder, tmp_path):
    output = tmp_path / "captions.jsonl"
    with output.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="Another process is writing captions to"):
            caption_dataset(*wide, job(folder, output), max_tokens=1)
    assert output.read_bytes() == b""
    assert counts(caption_dataset(*wide, job(folder, output), max_tokens=1)) == (3, 1)


def test_lines_command_no_terminal(wide, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(TextStream, "add", lambda *_: "\x1b[2J\x9b31m\x9d\x7fé")
    caption_dataset(*wide, job(folder, tmp_path / "captions.jsonl"), max_tokens=1)
    written = (tmp_path / "captions.jsonl").read_text(encoding="utf-8")
    assert "é" in written
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", written)
    assert lines(tmp_path / "captions.jsonl")[0]["text"].startswith("\x1b[2J\x9b31m\x9d\x7fé")


def test_what_is_told_after_each_record(wide, folder, tmp_path):
    told = []
    caption_dataset(
        *wide, job(folder, tmp_path / "out.jsonl"), lambda summary: told.append(counts(summary)), max_tokens=1
    )
    assert told == [(1, 0), (2, 0), (3, 0), (3, 1), (3, 1)]


def test_folders_and_files_that_are_wrong(wide, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        caption_dataset(*wide, job(tmp_path / "nowhere", tmp_path / "out.jsonl"))
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="something other than captions"):
        caption_dataset(*wide, job(folder, tmp_path / "list.jsonl"))
    assert (tmp_path / "list.jsonl").read_text() == "[1]\n"
    for output in ("captions", "captions.txt", "captions.csv", ""):
        with pytest.raises(UsageError, match="The output must end with"):
            job(folder, output)
    with pytest.raises(UsageError, match="need one folder"):
        caption_dataset(*wide, job(folder / "0.png", ".txt"))


def test_frames_of_animations_in_a_folder(wide, tmp_path):
    folder = tmp_path / "animations"
    folder.mkdir()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    caption_dataset(*wide, job(folder, tmp_path / "out.jsonl"), max_tokens=8, frames=2)
    assert lines(tmp_path / "out.jsonl")[0]["text"] == generate(*wide, "What?", [frames[0], frames[2]], max_tokens=8)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prompt": "Who?"}, "made with prompt 'What?', and now it is 'Who?'"),
        ({"max_tokens": 3}, "made with max_tokens 2, and now it is 3"),
        ({"temperature": 0.5}, "made with temperature 0.0, and now it is 0.5"),
        ({"decide_among": ["a", "b"], "max_tokens": 256}, "made with decide_among None, and now it is"),
    ],
    ids=str,
)
def test_another_question_on_the_same_output_is_refused(wide, folder, tmp_path, changed, words):
    output = tmp_path / "out.jsonl"
    caption_dataset(*wide, job(folder, output), max_tokens=2)
    before = output.read_bytes()
    own = {name: changed.pop(name) for name in ("prompt", "decide_among") if name in changed}
    with pytest.raises(UsageError, match=re.escape(words)):
        caption_dataset(*wide, job(folder, output, **own), **{"max_tokens": 2, **changed})
    assert output.read_bytes() == before


def test_another_model_on_the_same_output_is_refused_also_without_the_settings(wide, folder, small_model, tmp_path):
    output = tmp_path / "out.jsonl"
    caption_dataset(*wide, job(folder, output), max_tokens=2)
    (tmp_path / ".out.jsonl.settings.json").unlink()
    with pytest.raises(UsageError, match="made with model"):
        caption_dataset(*small_model, job(folder, output), max_tokens=2)
    with pytest.raises(UsageError, match="answered with another prompt"):
        caption_dataset(*wide, job(folder, output, "Who?"), max_tokens=2)
    assert caption_dataset(*wide, job(folder, output), max_tokens=2).skipped == 4


def test_what_does_not_change_an_answer_may_change(wide, folder, tmp_path):
    caption_dataset(*wide, job(folder, tmp_path / "out.jsonl", batch_size=2), max_tokens=2)
    options = {"vision_batch_size": 3, "prefill_step_size": 100}
    other = job(folder, tmp_path / "out.jsonl", batch_size=5, threads=1, dedupe=True)
    assert caption_dataset(*wide, other, max_tokens=2, **options).skipped == 4


@pytest.mark.parametrize("kind", KINDS)
def test_overwrite_append_and_retry(wide, folder, tmp_path, kind):
    output = tmp_path / f"out.{kind}"
    caption_dataset(*wide, job(folder, output), max_tokens=2)
    with pytest.raises(UsageError, match="letters, digits"):
        job(folder, output, append_as="../x")
    caption_dataset(*wide, job(folder, output, "Who?", append_as="who"), max_tokens=2)
    records = read_records(tmp_path, kind) + (read_records(tmp_path, kind, "out.who") if kind != "jsonl" else [])
    assert sorted((r["key"], r.get("as", "")) for r in records) == sorted(
        (key, name) for key in ("0.png", "1.png", "2.png", "broken.jpg") for name in ("", "who")
    )
    again = caption_dataset(*wide, job(folder, output, "Where?", overwrite=True), max_tokens=2)
    assert counts(again) == (3, 1)
    assert caption_dataset(*wide, job(folder, output, "Who?", append_as="who"), max_tokens=2).skipped == 4
    IMAGES[0].save(folder / "broken.jpg")
    retried = caption_dataset(*wide, job(folder, output, "Where?", retry_errors=True), max_tokens=2)
    assert (counts(retried), retried.skipped) == ((1, 0), 3)
    mine = [
        record for record in read_records(tmp_path, kind, "out" if kind == "jsonl" else "out-0") if "as" not in record
    ]
    assert kind != "jsonl" or len(mine) == 4


def test_texts_beside_the_images(wide, folder):
    (folder / "1.txt").write_text("somebody's own")
    caption_dataset(*wide, job(folder, ".txt"), max_tokens=2)
    records = {record["key"]: record for record in lines(folder / ".captions.jsonl")}
    assert (folder / "0.txt").read_text() == records["0.png"]["text"]
    assert (folder / "1.txt").read_text() == "somebody's own"
    assert "already exists" in records["1.png"]["error"]
    (folder / "2.txt").unlink()  # as a crash between the record and the text leaves it
    caption_dataset(*wide, job(folder, ".txt"), max_tokens=2)
    assert (folder / "2.txt").read_text() == records["2.png"]["text"]
    caption_dataset(*wide, job(folder, ".txt", "Who?", append_as="who"), max_tokens=2)
    assert (folder / "0.who.txt").is_file()
    caption_dataset(*wide, job(folder, ".txt", "Who?", overwrite=True), max_tokens=2)
    assert (folder / "1.txt").read_text() == "somebody's own"


def test_records_that_lead_out_of_the_folder_write_no_text(wide, folder, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "out.png")
    for key in ("../out.png", str(tmp_path / "out.png")):
        (folder / "..captions.jsonl.settings.json").unlink(missing_ok=True)
        (folder / ".captions.jsonl").write_text(json.dumps({"key": key, "text": "x", "model": "m"}) + "\n")
        with pytest.raises(UsageError, match="made with model"):
            caption_dataset(*wide, job(folder, ".txt"), max_tokens=2)
        caption_dataset(*wide, job(folder, ".txt", overwrite=True), max_tokens=2)
        assert not (tmp_path / "out.txt").exists()


def test_tars_keep_what_was_beside_the_image(wide, tmp_path):
    files = [("a/1.png", encoded(1)), ("a/1.txt", b"old"), ("a/1.json", b"{}"), ("2.png", encoded(2)), ("3.png", b"no")]
    write_tar(tmp_path / "in.tar", files)
    caption_dataset(*wide, job(tmp_path / "in.tar", tmp_path / "out.tar"), max_tokens=2)
    with tarfile.open(tmp_path / "out-00000.tar") as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive}
    assert found["in.tar/a/1.png"] == encoded(1)
    assert found["in.tar/a/1.original.txt"] == b"old"
    assert found["in.tar/a/1.json"] == b"{}"
    record = json.loads(found["in.tar/a/1.caption.json"])
    assert found["in.tar/a/1.txt"].decode() == record["text"]
    assert "error" in json.loads(found["in.tar/3.caption.json"])
    assert "in.tar/3.txt" not in found


def test_own_prompts(wide, folder, tmp_path):
    manifest, output = tmp_path / "m.jsonl", tmp_path / "out.jsonl"
    manifest.write_text('{"image": "images/0.png", "prompt": "Who?"}\n{"image": "images/1.png"}\n')
    caption_dataset(*wide, job(manifest, output), max_tokens=4)
    assert [record["text"] for record in lines(output)] == [
        generate(*wide, prompt, image, max_tokens=4) for prompt, image in zip(("Who?", "What?"), IMAGES)
    ]
    assert caption_dataset(*wide, job(manifest, output), max_tokens=4).skipped == 2
    manifest.write_text('{"image": "images/0.png", "prompt": "Where?"}\n')
    with pytest.raises(UsageError, match=r"images/0\.png was answered with another prompt"):
        caption_dataset(*wide, job(manifest, output), max_tokens=4)


def test_decisions_are_those_of_decide(wide, folder, tmp_path):
    choices = ["Yes", "No, never"]
    caption_dataset(*wide, job(folder, tmp_path / "out.jsonl", decide_among=choices, batch_size=2))
    found = batch_decide(*wide, ["What?"] * 3, IMAGES, choices=choices)
    for record, decision in zip(lines(tmp_path / "out.jsonl"), found):
        assert record["choice"] == decision.choice
        assert record["probabilities"] == pytest.approx(decision.probabilities, abs=1e-5)
    with pytest.raises(UsageError, match="leave out temperature"):
        caption_dataset(*wide, job(folder, tmp_path / "other.jsonl", decide_among=choices), temperature=1)


@pytest.mark.skipif(not guidance.REAL, reason="needs llguidance, of the extra constraints")
def test_answers_that_are_json(folder, tmp_path):
    demo = load("demo")
    schema = {"type": "object", "properties": {"star": {"type": "boolean"}}, "required": ["star"]}
    schema["additionalProperties"] = False  # or it goes on until it is cut
    for kind in KINDS:
        caption_dataset(*demo, job(folder, tmp_path / f"out.{kind}"), json_schema=schema, image_size=64)
        record = next(record for record in read_records(tmp_path, kind) if "error" not in record)
        found = json.loads(record["json"]) if kind == "parquet" else record["json"]
        assert found in ({"star": True}, {"star": False})
        assert "text" not in record


def test_an_image_that_breaks_its_answer_is_one_record(wide, many, tmp_path, monkeypatch):
    request = Engine.request

    def fail(engine, prompt, images, options):
        if images[0].pixels[images[0].shape[0] // 2, 0, 0] == 5:  # 05.png
            raise RuntimeError("poison")
        return request(engine, prompt, images, options)

    monkeypatch.setattr(Engine, "request", fail)
    assert counts(caption_dataset(*wide, job(many, tmp_path / "out.jsonl"), max_tokens=1)) == (8, 1)
    (error,) = (record for record in lines(tmp_path / "out.jsonl") if "error" in record)
    assert (error["key"], error["error"]) == ("05.png", "RuntimeError: poison")


def test_the_same_pixels_are_asked_once(wide, many, tmp_path, asked):
    for i in range(5):
        (many / f"copy{i}.bmp").write_bytes(encoded(i % 2, "BMP"))
    plain, once = tmp_path / "plain.jsonl", tmp_path / "once.jsonl"
    caption_dataset(*wide, job(many, plain), max_tokens=3, image_size=64)
    assert len(asked) == 14
    asked.clear()
    summary = caption_dataset(*wide, job(many, once, dedupe=True, batch_size=4), max_tokens=3, image_size=64)
    assert (len(asked), summary.hits, summary.answered) == (9, 5, 14)
    assert [{**record, "image": None} for record in lines(once)] == [{**r, "image": None} for r in lines(plain)]
    (many / "later.bmp").write_bytes(encoded(3, "BMP"))
    summary = caption_dataset(*wide, job(many, once, dedupe=True), max_tokens=3, image_size=64)
    assert (len(asked), summary.hits, summary.answered) == (9, 1, 1)  # known from the records


@pytest.mark.parametrize("kind", KINDS)
def test_parts_make_up_the_single_run(wide, many, tmp_path, kind):
    caption_dataset(*wide, job(many, tmp_path / f"out.{kind}"), max_tokens=2, image_size=64)
    whole = read_records(tmp_path, kind)
    parts = tmp_path / "parts"
    parts.mkdir()
    for index in (2, 0, 1):
        caption_dataset(*wide, job(many, parts / f"out.{kind}", shard=Shard(index, 3)), max_tokens=2, image_size=64)
    together = read_records(parts, kind, "out-*" if kind != "jsonl" else "out")
    assert sorted(together, key=lambda record: record["key"]) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_at_random_moments(wide, many, tmp_path, kind, monkeypatch):
    """A whole run: threads, engine and sink. After any number of stops, the records are those of a run without any."""
    caption_dataset(*wide, job(many, tmp_path / f"whole.{kind}"), max_tokens=2, image_size=64)
    whole = read_records(tmp_path, kind, "whole")
    rng = random.Random(11)
    step = Engine.step
    left = [0]

    def stop(engine):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return step(engine)

    monkeypatch.setattr(Engine, "step", stop)
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        while True:
            left[0] = rng.randrange(1, 20)
            try:
                options = {"batch_size": rng.choice((1, 3, 8)), "threads": rng.choice((1, 4)), "records_per_file": 4}
                caption_dataset(*wide, job(many, folder / f"out.{kind}", **options), max_tokens=2, image_size=64)
                break
            except KeyboardInterrupt:
                pass
        assert sorted(read_records(folder, kind), key=lambda record: record["key"]) == whole


def test_an_image_that_takes_long_holds_no_other_up(wide, many, tmp_path, monkeypatch):
    """The others are answered meanwhile; in the file it still comes first."""
    processor = wide[1]
    free, told = threading.Event(), []
    prepare = type(processor).prepare_frames

    def slow(self, source, *arguments):
        if getattr(source, "name", "") == "00.png":
            free.wait(60)
        return prepare(self, source, *arguments)

    monkeypatch.setattr(type(processor), "prepare_frames", slow)
    enqueue = Engine.enqueue
    monkeypatch.setattr(Engine, "enqueue", lambda *a, **k: told.append(1) or enqueue(*a, **k))
    take = Prefetch.take

    def watch(self, wait):
        if len(told) == 8:
            free.set()
        return take(self, wait)

    monkeypatch.setattr(Prefetch, "take", watch)
    caption_dataset(*wide, job(many, tmp_path / "out.jsonl", batch_size=2), max_tokens=1, image_size=64)
    assert [record["key"] for record in lines(tmp_path / "out.jsonl")] == [f"{i:02}.png" for i in range(9)]
