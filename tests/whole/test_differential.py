"""How tests/whole/differential.py draws its cases and makes them small; the cases themselves need torch."""

import json

import pytest

from tests.support.differential import draws, folders, prompts
from tests.whole.differential import main


def test_a_case_is_drawn_by_its_number_alone():
    assert draws.draw(3, 14) == draws.draw(3, 14)
    assert len({draws.written(draws.draw(seed, number)) for seed in (3, 4) for number in range(20)}) == 40


def test_every_choice_is_taken_and_left():
    drawn = [draws.draw(0, number) for number in range(2000)]
    for name, choice in draws.CHOICES.items():
        values = [json.dumps(case[name]) for case in drawn]
        assert len(set(values)) > 1, name
        assert json.dumps(choice.default) in values or choice is draws.SEED, name


def test_a_case_is_written_and_read():
    case = draws.draw(1, 2)
    assert draws.read(draws.written(case)) == case
    assert draws.read("{}") == draws.defaults()
    with pytest.raises(ValueError, match="A case is an object of weights"):
        draws.read('{"no such choice": 1}')


def test_what_a_failure_does_not_need_is_taken_back():
    case = {**draws.draw(5, 6), "width": 24, "rows": 2}
    small = draws.shrunk(case, lambda case: case["width"] == 24 and case["rows"] == 2)
    assert small == {**draws.defaults(), "width": 24, "rows": 2}


def test_what_can_be_taken_back_only_after_another_is_taken_back_too():
    """``weights`` comes first, and is needed as long as ``rows``, which comes last, is not at its default."""
    case = {**draws.defaults(), "weights": 7, "rows": 2}
    assert draws.shrunk(case, lambda case: case["rows"] == 1 or case["weights"] == 7) == draws.defaults()


def test_every_case_can_be_written_down(tmp_path):
    for number in range(60):
        case, folder = draws.draw(2, number), tmp_path / str(number)
        folder.mkdir()
        ids = folders.write_prompt_files(folder, case)
        described = folders.config(case, min(ids.values()) + len(ids), ids["<image>"])
        json.dumps([described, folders.llava_config(case, described)])
        assert folders.side(case) % folders.patch_size(case) == 0
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        assert sorted([*vocabulary.values(), *ids.values()]) == list(range(256 + case["merges"] + 4))


def test_prompts_have_a_mark_for_each_image_and_end_no_turn():
    for number in range(300):
        case = draws.draw(8, number)
        for row in prompts.rows(case):
            said = row.text or json.dumps(row.messages, ensure_ascii=False)
            assert said.count("<image>") + said.count('{"type": "image"}') == len(row.images)
            assert row.text or not any(special in said for special in folders.SPECIAL[:3])


def test_help_needs_no_torch(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--cases N" in capsys.readouterr().out
