"""Words of a command line: which are images, and which the question."""

import pytest

from mlx_fastvlm.cli.sources import dragged, expanded, is_source
from mlx_fastvlm.generate import _check_flags, parser


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "my photo.JPG", "what", "sub"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    "word", ["a.png", "my photo.JPG", "gone.jpg", "https://x.y/z", "data:image/png;base64,aa", "./what"]
)
def test_images(folder, word):
    assert is_source(word)


@pytest.mark.parametrize("word", ["What", "what", "What is a.png?", "What is in gone.jpg", "", "~", "\0", "x" * 5000])
def test_words(folder, word):
    assert not is_source(word)


def test_patterns(folder):
    assert expanded("*.png") == ["a.png", "b.png"]
    assert expanded("a.png") == ["a.png"]
    assert expanded("https://x.y/z?q=*") == ["https://x.y/z?q=*"]
    with pytest.raises(FileNotFoundError, match="no file matches"):
        expanded("*.gif")


@pytest.mark.parametrize(
    ("line", "images", "rest"),
    [
        ("a.png", ["a.png"], ""),
        ("a.png b.png What?", ["a.png", "b.png"], "What?"),
        ("my\\ photo.JPG", ["my photo.JPG"], ""),
        ("'my photo.JPG' and?", ["my photo.JPG"], "and?"),
        ("my photo.JPG", ["my photo.JPG"], ""),
        ("https://x.y/z What's this?", ["https://x.y/z"], "What's this?"),
        ("What's in a.png?", [], "What's in a.png?"),
        ("gone.png", [], "gone.png"),
        ('"', [], '"'),
        ("", [], ""),
    ],
)
def test_dragged(folder, line, images, rest):
    assert dragged(line) == (images, rest)


@pytest.mark.parametrize(
    ("words", "images", "prompt"),
    [
        (["a.png", "What is this?"], ["a.png"], "What is this?"),
        (["a.png", "--max-tokens", "5", "What", "now?"], ["a.png"], "What now?"),
        (["--image", "a.png", "b.png", "What is this?"], ["a.png", "b.png"], "What is this?"),
        (["--image", "what", "-p", "Why?"], ["what"], "Why?"),
        (["--image", "a.png", "--image", "*.png"], ["a.png", "*.png"], "Describe the image."),
        (["b.png", "--image", "a.png"], ["b.png", "a.png"], "Describe the image."),
        (["Tell", "me"], [], "Tell me"),
    ],
)
def test_the_command_line(folder, words, images, prompt):
    command = parser()
    arguments = command.parse_args(words)
    _check_flags(command, arguments)
    assert (arguments.image, arguments.prompt) == (images, prompt)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "neither an image nor a question"),
        (["a.png", "What?", "--prompt", "Why?"], "the question is given twice"),
        (["a.png", "--resize-shape", "512"], "did you mean --image-size?"),
    ],
)
def test_what_is_refused(folder, capsys, words, said):
    command = parser()
    with pytest.raises(SystemExit) as end:
        _check_flags(command, command.parse_args(words))
    assert end.value.code == 2
    assert said in capsys.readouterr().err
