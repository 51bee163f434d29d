"""Scores of the demo on scenes: asked once, kept, resumed, and a broken row that counts as wrong."""

import json
import random

import pytest

from mlx_fastvlm import evaluate, generate, load
from mlx_fastvlm.data.sinks import Destination
from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.evaluation.metrics import METRICS
from mlx_fastvlm.evaluation.questions import Questions
from mlx_fastvlm.evaluation.scores import Interval, Task
from mlx_fastvlm.generation.options import GenerationOptions
from tests.support.scripts import load_script

BROKEN = [{"image": "missing.png", "question": "What?", "answer": "x", "kind": "broken"}, "no JSON"]
OPTIONS = GenerationOptions(max_tokens=32)


@pytest.fixture(scope="module")
def demo():
    return load("demo")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder with 6 images, and a row about each."""
    script = load_script("examples/demo/scenes.py")
    folder = tmp_path_factory.mktemp("scenes")
    rows = []
    for number, seed in enumerate(script.HELD_OUT_SEEDS[:6]):
        scene = script.make_scene(seed)
        script.draw(scene, 256).save(folder / f"{number}.png")
        (asked,) = script.questions(scene, random.Random(number), 1)
        rows.append({"image": f"{number}.png", "prompt": asked.text, "answer": asked.answer, "kind": asked.kind})
    return folder, rows


def score(model, processor, task, destination, options):
    return evaluate.measure(model, processor, task, evaluate.make_job(task, destination), options)


def write(folder, rows, name="rows.jsonl"):
    file = folder / name
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def records(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_score_is_of_the_answers_that_generate_gives(demo, scenes, tmp_path):
    folder, rows = scenes
    output = tmp_path / "out.jsonl"
    result = score(*demo, Task(write(folder, rows), "exact"), Destination(str(output)), OPTIONS)
    answers = [generate(*demo, row["prompt"], folder / row["image"], max_tokens=32) for row in rows]
    assert [record["text"] for record in records(output)] == answers
    right = [answer == row["answer"] for answer, row in zip(answers, rows)]
    assert (result.total.score, result.total.questions) == (pytest.approx(100 * sum(right) / 6), 6)
    assert 0 < sum(right) < 6
    assert result.total.low < result.total.score <= result.total.high
    assert (result.errors, result.first_error, result.cut) == (0, None, 0)


def test_resuming_asks_only_what_is_missing(demo, scenes, tmp_path, asked):
    folder, rows = scenes
    output, file = tmp_path / "out.jsonl", write(folder, rows)
    whole = score(*demo, Task(file, "exact"), Destination(str(output)), OPTIONS)
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:2]) + lines[2][:20])  # killed while writing the third
    asked.clear()
    assert score(*demo, Task(file, "exact"), Destination(str(output)), OPTIONS) == whole
    assert len(asked) == 4
    assert output.read_text() == "".join(lines)
    asked.clear()
    assert score(*demo, Task(file, "exact"), Destination(str(output)), OPTIONS) == whole
    assert asked == []


def test_broken_rows_count_as_wrong(demo, scenes, tmp_path):
    folder, rows = scenes
    file = write(folder, [rows[3], *BROKEN, rows[4]])
    result = score(*demo, Task(file, "exact", by="kind"), Destination(str(tmp_path / "out.jsonl")), OPTIONS)
    assert (result.total.score, result.total.questions, result.errors) == (50, 4, 2)
    assert result.first_error == f"rows.jsonl:2: {folder}/missing.png: no such image; check the path."
    assert {name: found.score for name, found in result.groups.items()} == {
        rows[3]["kind"]: 100,
        rows[4]["kind"]: 100,
        "broken": 0,
        "none": 0,
    }
    assert records(tmp_path / "out.jsonl")[2]["error"] == "rows.jsonl:3 is not a JSON object; correct the line."


def test_a_row_that_was_mended_is_asked_on_retrying(demo, scenes, tmp_path, asked):
    folder, rows = scenes
    output = str(tmp_path / "out.jsonl")
    score(*demo, Task(write(folder, [rows[3], BROKEN[0]]), "exact"), Destination(output), OPTIONS)
    asked.clear()
    file = write(folder, [rows[3], {**BROKEN[0], "image": "0.png"}])
    result = score(*demo, Task(file, "exact"), Destination(output, retry_errors=True), OPTIONS)
    assert (len(asked), result.errors) == (1, 0)


def test_parquet_as_the_hub_has_it_scores_as_the_same_lines(demo, scenes, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow, of the extra test")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, of the extra test")
    folder, rows = scenes
    stored = [{**row, "image": {"bytes": (folder / row["image"]).read_bytes(), "path": row["image"]}} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(stored), tmp_path / "rows.parquet")
    found = [
        score(*demo, Task(file, "f1"), Destination(str(tmp_path / f"{number}.jsonl")), OPTIONS)
        for number, file in enumerate((write(folder, rows), tmp_path / "rows.parquet"))
    ]
    assert found[0] == found[1]
    assert found[0].total.score > 50


def test_several_images_are_asked_about_at_once(demo, scenes, tmp_path):
    folder, _ = scenes
    row = {"images": ["0.png", "1.png"], "prompt": "Which is it?", "answer": "x"}
    output = tmp_path / "out.jsonl"
    score(*demo, Task(write(folder, [row, {**row, "images": ["0.png"]}]), "exact"), Destination(str(output)), OPTIONS)
    two, one = (record["prompt_tokens"] for record in records(output))
    assert two - one >= 16  # an image's tokens
    images = [folder / "0.png", folder / "1.png"]
    assert records(output)[0]["text"] == generate(*demo, "Which is it?", images, max_tokens=32)


def test_predictions_of_another_question_are_not_mixed(demo, scenes, tmp_path):
    folder, rows = scenes
    destination = Destination(str(tmp_path / "out.jsonl"))
    score(*demo, Task(write(folder, rows[3:4]), "exact"), destination, OPTIONS)
    with pytest.raises(UsageError, match=r"was made with prompt .* give --overwrite, --append-as"):
        score(*demo, Task(write(folder, rows[3:4]), "relaxed"), destination, OPTIONS)
    with pytest.raises(UsageError, match="was answered with another prompt of its own"):
        score(*demo, Task(write(folder, [{**rows[3], "prompt": "What?"}]), "exact"), destination, OPTIONS)


def test_runs_in_one_file_have_scores_of_their_own(demo, scenes, tmp_path):
    folder, rows = scenes
    task, output = Task(write(folder, rows[:1]), "exact"), str(tmp_path / "out.jsonl")
    cut = GenerationOptions(max_tokens=1)
    runs = (Destination(output), cut), (Destination(output, append_as="whole"), OPTIONS), (Destination(output), cut)
    assert [score(*demo, task, *run).total.score for run in runs] == [0, 100, 0]


# What is asked


def questions(folder, rows, metric="exact", **options):
    chosen = METRICS[metric]
    return Questions(write(folder, rows), chosen, options.pop("post_prompt", chosen.post_prompt), **options)


def test_a_question_gets_its_choices_and_the_metrics_request(tmp_path):
    row = {"image": "x.png", "question": "Which?", "options": ["red", "blue"], "answer": 1}
    (found,) = questions(tmp_path, [row], "choice").all
    assert found.prompt == "Which?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
    assert found.answers == ["B", "blue"]
    assert questions(tmp_path, [{**row, "prompt": "As it stands"}], "choice").all[0].prompt == "As it stands"
    assert questions(tmp_path, [row], "choice", post_prompt="").all[0].prompt == "Which?\nA. red\nB. blue"
    assert questions(tmp_path, [row], "exact").all[0].prompt.startswith("Which?\nAnswer the question")


@pytest.mark.parametrize(
    ("answer", "choices", "right"),
    [
        ("B", ["red", "blue"], ["B", "blue"]),
        ("b", ["red", "blue"], ["B", "blue"]),
        ("blue", ["red", "blue"], ["B", "blue"]),
        (1, ["red", "blue"], ["B", "blue"]),
        ("1", ["red", "blue"], ["B", "blue"]),
        (1, ["1", "2"], ["B", "2"]),
        ("4", ["3", "4"], ["B", "4"]),
        ("C", [], ["C"]),
    ],
)
def test_the_right_choice(tmp_path, answer, choices, right):
    row = {"question": "Which?", "choices": choices, "answer": answer}
    assert questions(tmp_path, [row], "choice").all[0].answers == right


def test_answers_of_annotators(tmp_path):
    people = [{"answer": "yes", "answer_id": number} for number in range(10)]
    assert questions(tmp_path, [{"question": "?", "answers": people}], "vqa").all[0].answers == ["yes"] * 10


@pytest.mark.parametrize(
    ("row", "metric", "complaint"),
    [
        ({"answer": "x"}, "exact", "asks nothing; give it a text as question, or as prompt."),
        ({"question": "?"}, "exact", "has no answer; give it a text as answer, or a list of them as answers."),
        ({"question": "?", "answers": []}, "exact", "has no answer"),
        ({"question": "?", "answer": "x"}, "vqa", "has 1 answers, and this metric needs those of 4 annotators"),
        ({"question": "?", "choices": "ab", "answer": "A"}, "choice", "has choices that are not a list of texts"),
        ({"question": "?", "choices": ["a"] * 27, "answer": "A"}, "choice", "has 27 choices, and there are 26 letters"),
        ({"question": "?", "choices": ["1", "2"], "answer": "1"}, "choice", "could be several of its choices"),
        ({"question": "?", "choices": ["red"], "answer": "B"}, "choice", "is none of its choices; give the letter."),
        ({"question": "?", "choices": ["red"], "answer": 3}, "choice", "is none of its choices"),
        ({"question": "?", "answer": "red"}, "choice", "has no choices, so its answer must be a letter"),
    ],
    ids=range(10),
)
def test_a_row_that_cant_be_scored_says_why(tmp_path, row, metric, complaint):
    (found,) = questions(tmp_path, [row], metric).all
    assert found.error.startswith("rows.jsonl:1 ")
    assert complaint in found.error


@pytest.mark.parametrize("image", [None, [], 7, "", [None]], ids=str)
def test_a_row_without_an_image_is_an_error(tmp_path, image):
    (item,) = questions(tmp_path, [{"image": image, "question": "?", "answer": "x"}])
    assert "image" in item.error.lower()


def test_files_that_are_none(tmp_path):
    with pytest.raises(UsageError, match="not a file of questions"):
        Questions(tmp_path / "x.txt", METRICS["exact"], "")
    with pytest.raises(FileNotFoundError, match="no such file; check the path"):
        Questions(tmp_path / "x.jsonl", METRICS["exact"], "")
    with pytest.raises(ValueError, match="has no question"):
        questions(tmp_path, [])
    same = {"key": "a", "question": "?", "answer": "x"}
    with pytest.raises(UsageError, match=r"rows.jsonl:2 has the key 'a' of an earlier row"):
        questions(tmp_path, [same, same])
    with pytest.raises(UsageError, match=r"No row of rows.jsonl has a field 'kind'"):
        questions(tmp_path, [same], by="kind")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match=r"x.parquet can't be read past row 0 .*; get it again"):
        Questions(tmp_path / "x.parquet", METRICS["exact"], "")


# How sure a score is


def test_an_interval_follows_its_seed_and_holds_what_it_says():
    scores = [1.0] * 60 + [0.0] * 40
    found = Interval.of(scores)
    assert found == Interval.of(scores)
    assert found != Interval.of(scores, seed=1)
    # The normal approximation: 1.96 * sqrt(0.6 * 0.4 / 100) = 9.6.
    assert (found.score, found.questions) == (pytest.approx(60), 100)
    assert (found.low, found.high) == (pytest.approx(50.4, abs=1.5), pytest.approx(69.6, abs=1.5))
    assert Interval.of([1.0]) == Interval(100.0, 100.0, 100.0, 1)


# The command


def run(folder, output, *arguments):
    return evaluate.main(["--model", "demo", "--data", str(folder / "rows.jsonl"), "--output", str(output), *arguments])


def test_the_command_prints_a_table_or_json(scenes, tmp_path, capsys):
    folder, rows = scenes
    write(folder, rows[3:5])
    assert run(folder, tmp_path / "out.jsonl", "--metric", "exact", "--by", "kind", "--max-tokens", "32") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[:3] == [
        "| questions | number | exact (%) | 95% interval |",
        "| --- | --: | --: | --: |",
        "| all | 2 | 100.0 | 100.0 to 100.0 |",
    ]
    assert err == ""
    assert run(folder, tmp_path / "out.jsonl", "--metric", "exact", "--max-tokens", "32", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["metric"], found["score"], found["questions"], found["source"]) == ("exact", 100, 2, "demo")


def test_exit_codes(scenes, tmp_path, capsys):
    folder, rows = scenes
    write(folder, [rows[3], *BROKEN])
    assert run(folder, tmp_path / "out.jsonl", "--metric", "exact") == 3
    assert "2 questions have no answer and count as wrong; the first: rows.jsonl:2" in capsys.readouterr().err
    write(folder, [rows[1]])
    assert run(folder, tmp_path / "cut.jsonl", "--metric", "exact", "--max-tokens", "2") == 0
    assert "1 answers were cut off at --max-tokens 2" in capsys.readouterr().err
    assert run(folder, tmp_path / "out.parquet", "--metric", "exact") == 2
    assert "Predictions are JSON lines" in capsys.readouterr().err
    assert run(folder, tmp_path / "new.jsonl", "--metric", "exact", "--bootstrap-seed", "-1") == 2
    assert "seed must be at least 0" in capsys.readouterr().err
    assert not (tmp_path / "new.jsonl").exists()
    assert run(tmp_path, tmp_path / "out.jsonl", "--metric", "exact") == 1
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        run(folder, tmp_path / "out.jsonl", "--metric", "bleu")
    assert ended.value.code == 2
