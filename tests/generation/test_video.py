"""Questions about films: frames with their times before the question, and what can't be asked so."""

import numpy as np
import pytest
from PIL import Image

from mlx_fastvlm import ChatSession, Engine, decide, generate, load
from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.generate import main
from mlx_fastvlm.generation.dataset import caption_dataset
from mlx_fastvlm.generation.options import GenerationOptions
from mlx_fastvlm.generation.request import make_request
from mlx_fastvlm.processing.video import load_video
from tests.support.datasets import job
from tests.support.films import film
from tests.support.models import wide_model

FRAMES = [Image.new("RGB", (40, 30), (level, 0, 0)) for level in (0, 100, 200)]


@pytest.fixture(scope="module")
def wide():
    return wide_model()


def asked(wide, prompt, image=None, **options):
    return make_request(wide[1], prompt, image, GenerationOptions(**options))


@pytest.mark.parametrize("prompt", ["What happens?", [{"role": "user", "content": "What happens?"}]])
def test_frames_go_before_the_question_each_behind_its_time(wide, prompt):
    request = asked(wide, prompt, video=FRAMES, fps=2)
    written = "0.0 s:\n<image>\n0.5 s:\n<image>\n1.0 s:\n<image>\nWhat happens?"
    by_hand = asked(wide, written, FRAMES)
    assert request.ids == by_hand.ids
    assert [image.fingerprint for image in request.images] == [image.fingerprint for image in by_hand.images]


def test_images_beside_a_film(wide):
    image = Image.new("RGB", (9, 9), "white")
    request = asked(wide, "Is <image> in it?", image, video=FRAMES, max_frames=2)
    assert len(request.images) == 3
    assert request.images[-1].fingerprint == wide[1].prepare(image)[0].fingerprint
    first = asked(
        wide, [{"role": "system", "content": "s"}, {"role": "user", "content": "Is it?"}], image, video=FRAMES
    )
    assert len(first.images) == 4


def test_a_film_is_answered_like_its_frames(wide):
    pytest.importorskip("av", reason="needs PyAV, of the extra test")
    data = film(4, 5)
    shots = load_video(data, 1, 3)
    text = "\n".join(f"{time:.1f} s:\n<image>" for time, _ in shots) + "\nWhy?"
    expected = generate(*wide, text, [frame for _, frame in shots], max_tokens=8)
    assert generate(*wide, "Why?", video=data, max_frames=3, max_tokens=8) == expected
    answer = Engine(*wide).submit("Why?", video=data, max_frames=3, max_tokens=8)
    assert "".join(response.text for response in answer) == expected


def test_the_demo_decides_about_a_film():
    model, processor = load("demo")
    star = Image.open("examples/images/shapes-1.png")
    found = decide(model, processor, "Is there a blue star?", choices=["Yes", "No"], video=[star], fps=1)
    assert found.choice == "Yes"


def test_where_films_do_not_go(wide, tmp_path):
    with pytest.raises(UsageError, match="takes no video"):
        ChatSession(*wide, video=FRAMES)
    with pytest.raises(UsageError, match="Captions are of images"):
        caption_dataset(*wide, job(tmp_path, tmp_path / "o.jsonl"), video=FRAMES)
    with pytest.raises(ValueError, match="goes before a question"):
        asked(wide, [{"role": "system", "content": "s"}], video=FRAMES)
    for options in ({"fps": 2}, {"max_frames": 3}):
        with pytest.raises(UsageError, match="give one as video"):
            asked(wide, "a", **options)
    for options in ({"fps": 0}, {"max_frames": 0}, {"fps": np.inf}):
        with pytest.raises(UsageError):
            asked(wide, "a", video=FRAMES, **options)
    with pytest.raises(UsageError, match="must not be empty"):
        asked(wide, "a", video=[])


def test_on_the_command_line(checkpoint, tmp_path, capfd):
    pytest.importorskip("av", reason="needs PyAV, of the extra test")
    (tmp_path / "film.mp4").write_bytes(film(4, 5))
    command = ["--model", str(checkpoint("apple")), "--prompt", "Hi", "--max-tokens", "3"]
    assert main([*command, "--video", str(tmp_path / "film.mp4"), "--max-frames", "2", "--image-size", "64"]) == 0
    assert main([*command, "--video", str(tmp_path / "none.mp4")]) == 1
    assert "no such video" in capfd.readouterr().err
