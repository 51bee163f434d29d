"""The command line, as a user runs it."""

import json
import sys

import pytest
from PIL import Image

from mlx_fastvlm.generate import main
from mlx_fastvlm.processing.tokenizer import Detokenizer
from tests.support import small
from tests.support.paths import ROOT
from tests.support.processes import run


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(small.odd_image(70, 50)).save(path)
    return str(path)


@pytest.fixture
def arguments(checkpoint, image):
    return ["--model", str(checkpoint("apple")), "--image", image, "--prompt", "Hi", "--max-tokens", "5"]


def test_the_answer_goes_to_stdout_and_the_rest_to_stderr(arguments, capfd):
    assert main(arguments) == 0
    out, err = capfd.readouterr()
    assert out.endswith("\n")
    assert "tokens" not in out
    assert "first token after" in err
    assert "peak memory" in err


def test_json_is_one_object(arguments, capfd):
    assert main([*arguments, "--json"]) == 0
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert {"text", "finish_reason", "prompt_tokens", "generation_tps", "time_to_first_token", "peak_memory"} <= set(
        answer
    )
    assert answer["generation_tokens"] <= 5
    assert err == ""


def test_a_choice(arguments, capfd):
    at = arguments.index("--max-tokens")
    arguments = arguments[:at] + arguments[at + 2 :]
    assert main([*arguments, "--choices", "A, B"]) == 0
    out, err = capfd.readouterr()
    assert out.strip() in ("A", "B")
    assert [line.split()[1] for line in err.splitlines()] == ["A", "B"]
    assert main([*arguments, "--choices", "A,B", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["choice"] == out.strip()
    assert sum(found["probabilities"].values()) == pytest.approx(1)
    assert main([*arguments, "--choices", "A,B", "--temp", "1"]) == 2
    assert "leave out temperature" in capfd.readouterr().err
    assert main([*arguments, "--choices", "A"]) == 2
    with pytest.raises(SystemExit):
        main([*arguments, "--choices", "A,B", "--n", "2"])


def test_several_answers_are_a_line_each(arguments, capfd):
    options = ["--temperature", "2", "--seed", "5", "--max-tokens", "6"]
    assert main([*arguments, *options, "--json", "--n", "3"]) == 0
    several = [json.loads(line)["text"] for line in capfd.readouterr().out.splitlines()]
    assert main([*arguments, *options, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["text"] == several[0]
    assert len(several) == 3
    for flags in (["--n", "0"], ["--n", "2", "--prompt-cache", "x"]):
        with pytest.raises(SystemExit) as end:
            main([*arguments, *flags])
        assert end.value.code == 2
        assert "--n " in capfd.readouterr().err


def test_log_probabilities_in_json(arguments, capfd):
    assert main([*arguments, "--json", "--logprobs"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert len(answer["tokens"]) == answer["generation_tokens"]
    assert all(entry["logprob"] <= 0 for entry in answer["tokens"])
    assert main([*arguments, "--json"]) == 0
    assert "tokens" not in json.loads(capfd.readouterr().out)


def test_a_prompt_cache_in_a_file(arguments, tmp_path, capfd):
    file = tmp_path / "cache.safetensors"
    answers = []
    for _ in range(2):
        assert main([*arguments, "--json", "--prompt-cache", str(file)]) == 0
        answers.append(json.loads(capfd.readouterr().out))
    assert answers[0]["cached_tokens"] == 0
    assert answers[1]["cached_tokens"] == answers[1]["prompt_tokens"] - 1
    assert answers[0]["text"] == answers[1]["text"]


def test_every_option_reaches_the_generator(arguments, monkeypatch, capfd):
    seen = {}

    def stream_answers(model, processor, prompt, image, options, n):
        seen.update(prompt=prompt, image=image, n=n, **vars(options))
        raise ValueError("seen")

    monkeypatch.setattr(sys.modules["mlx_fastvlm.generate"], "stream_answers", stream_answers)
    options = {
        "system": "s",
        "image_size": 64,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "min_p": 0.1,
        "seed": 4,
        "repetition_penalty": 1.1,
        "repetition_context_size": 9,
        "max_kv_size": 500,
        "kv_bits": 4,
        "kv_group_size": 32,
        "prefill_step_size": 100,
        "frames": 2,
        "vision_batch_size": 3,
        "max_tokens": 7,
        "n": 2,
    }
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    flags += ["--stop", "x", "--stop", "yz", "--logit-bias", "42:-1.5", "--logit-bias", "7:2", "--json", "--logprobs"]
    assert main([*arguments, "--image", arguments[3], *flags]) == 1
    assert options.items() <= seen.items()
    assert seen["stop"] == ["x", "yz"]
    assert seen["logit_bias"] == {42: -1.5, 7: 2.0}
    assert seen["logprobs"] is True
    assert seen["prompt"] == "Hi"
    assert len(seen["image"]) == 2
    assert main([*arguments, "--temp", "0.25"]) == 1
    assert seen["temperature"] == 0.25


FAULTS = {
    "no such image": (["--image", "nowhere.png"], "nowhere.png", 1),
    "no such model": (["--model", "nowhere"], "nor a hub id", 1),
    "bad option": (["--top-p", "2"], "top_p", 2),
    "marks": (["--prompt", "<image> <image>"], "one mark for each image", 1),
    "prompt too long for the cache": (["--max-kv-size", "10"], "max_kv_size", 2),
    "group size": (["--kv-bits", "8", "--kv-group-size", "64"], "head_dim 16", 2),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line(arguments, capfd, fault):
    flags, words, code = FAULTS[fault]
    kept = [a for a in arguments if fault != "no such image" or a not in arguments[2:4]]
    assert main([*kept, *flags]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1


def test_debug_shows_the_traceback(arguments):
    with pytest.raises(ValueError, match="top_p"):
        main([*arguments, "--top-p", "2", "--debug"])


@pytest.mark.parametrize(
    "flags",
    [
        ["--max-tokens", "many"],
        ["--logit-bias", "42"],
        ["--logit-bias", "a:b"],
        ["--output", "captions.jsonl"],  # of caption
        ["--logprobs"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_2(capsys, flags):
    with pytest.raises(SystemExit) as raised:
        main(flags)
    assert raised.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_help_is_grouped_and_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for group in ("question:", "images:", "model:", "sampling:", "memory:", "output:"):
        assert f"\n{group}\n" in text
    assert text.count("memory:") == 1
    assert "example: fastvlm photo.jpg" in text


def test_ctrl_c_keeps_what_was_said(arguments, monkeypatch, capfd):
    calls = []

    def add(self, token):
        calls.append(token)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return "x"

    monkeypatch.setattr(Detokenizer, "add", add)
    assert main(arguments) == 130
    out, err = capfd.readouterr()
    assert out == "xx\n"
    assert "answer: 2 tokens" in err
    assert err.endswith("interrupted\n")


def test_as_a_process_without_python_warnings(arguments):
    command = [sys.executable, "-W", "always", "-m", "mlx_fastvlm.generate", *arguments]
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert "RuntimeWarning" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_closed_pipe_is_no_traceback(arguments):
    command = f"{sys.executable} -m mlx_fastvlm.generate {' '.join(arguments)} | true"
    done = run(["sh", "-c", command])
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_a_greedy_answer_needs_neither_mlx_lm_nor_transformers():
    """Importing them takes longer than the demo's whole answer."""
    image = ROOT / "examples" / "images" / "shapes-1.png"
    code = "import sys; from mlx_fastvlm.generate import main; main(['--image', sys.argv[1]]); "
    code += "sys.exit(any(name in sys.modules for name in ('mlx_lm', 'transformers', 'torch')))"
    assert run([sys.executable, "-c", code, str(image)]).returncode == 0


def test_a_terminal_is_shown_no_control_characters(arguments, monkeypatch, capfd):
    """An answer or a name could move the cursor, or write to the clipboard."""
    monkeypatch.setattr(Detokenizer, "add", lambda self, token: "\x1b]52;c;cm0=\x07é\n")
    assert main(arguments) == 0
    assert "\x1b" in capfd.readouterr().out  # a file or a pipe gets all of it
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(arguments) == 0
    out = capfd.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "é\n" in out
    assert main([*arguments, "--image", "\x1b[2Jno.png"]) == 1
    assert "\x1b" not in capfd.readouterr().err
