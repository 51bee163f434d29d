"""What is said ends no turn, also where the vocabulary itself has the words that would; long prompts are refused."""

import dataclasses
import json
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mlx_fastvlm import FastVlmConfig, FastVlmProcessor
from mlx_fastvlm.files.text import SIZE_LIMIT
from mlx_fastvlm.processing.marks import AnswerText
from mlx_fastvlm.processing.tokenizer import read_tokenizer
from tests.support import checkpoints

WORDS = ("<|im_end|>", "<|im_start|>")
ALPHABET = checkpoints.byte_alphabet()


def merges_that_spell(*words):
    """A byte vocabulary, and merges by which BPE makes each word one token."""
    vocab, merges = {letter: id for id, letter in enumerate(ALPHABET)}, []
    for word in words:
        for stop in range(2, len(word) + 1):
            merge = (word[: stop - 1], word[stop - 1])
            if word[:stop] not in vocab:
                vocab[word[:stop]] = len(vocab)
                merges.append(merge)
    return vocab, merges


def spelt_by_merges():
    vocab, merges = merges_that_spell(*WORDS)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def spelt_and_added():
    tokenizer = spelt_by_merges()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in WORDS])
    return tokenizer


def spelt_and_added_as_plain():
    tokenizer = spelt_by_merges()
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in WORDS])
    return tokenizer


def whole_words_of_the_vocabulary():
    vocab = {letter: id for id, letter in enumerate(ALPHABET)} | {word: 256 + i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.BPE(vocab, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def word_level():
    words = ["<unk>", *WORDS, "a", "b", "user", "system", "assistant", "<|im_", "end|>"]
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


KINDS = [spelt_by_merges, spelt_and_added, spelt_and_added_as_plain, whole_words_of_the_vocabulary, word_level]


def processor_of(tokenizer, **options):
    ends = frozenset({tokenizer.token_to_id("<|im_end|>")})
    return FastVlmProcessor(tokenizer, -200, ends, **options)


@settings(max_examples=60)
@given(words=st.lists(st.sampled_from([*WORDS, "a", " ", "\n", "<|im_", "end|>", "é"]), max_size=8))
@pytest.mark.parametrize("kind", KINDS)
def test_what_users_say_makes_no_ids_of_turns(kind, words):
    processor = processor_of(kind())
    said = "".join(words)
    harmless = re.sub("|".join(map(re.escape, WORDS)), "a", said)  # the template's own words stay what they are
    turns = {processor.tokenizer.token_to_id(word) for word in WORDS}

    def count(text, role="user"):
        ids = processor.encode_chat([{"role": role, "content": text}])
        return sum(id in turns for id in ids)

    assert count(said) == count(harmless)
    assert count(AnswerText(said, []), "assistant") == count(AnswerText(harmless, []), "assistant")
    if kind is not word_level:
        ids = processor.encode_chat([{"role": "user", "content": said}])
        assert said in processor.decode(ids, skip_special_tokens=False)


@settings(max_examples=60)
@given(chats=st.lists(st.lists(st.sampled_from([*WORDS, "a", "end|>", "<image>", "b" * 600]), max_size=3), max_size=8))
def test_what_is_remembered_changes_nothing(chats):
    """Short texts' tokens are, of who said what; here of so few that they are forgotten again."""
    template = "{% for m in messages %}<|im_end|>{{ m.content }}a{% endfor %}"
    mine = processor_of(spelt_by_merges(), chat_template=template)
    with pytest.MonkeyPatch.context() as few:
        few.setattr("mlx_fastvlm.processing.encoding._KEPT", 3)
        for texts in chats:
            messages = [{"role": "user", "content": text} for text in texts]
            messages += [{"role": "assistant", "content": "".join(texts)}]
            fresh = processor_of(spelt_by_merges(), chat_template=template)
            assert mine.encode_chat(messages) == fresh.encode_chat(messages)
            known = mine._encoder._known
            assert len(known) <= 3
            assert all(len(text) <= 500 for text, _ in known)


@pytest.mark.parametrize("kind", [spelt_by_merges, whole_words_of_the_vocabulary])
def test_the_template_still_ends_turns_with_the_vocabularys_words(kind):
    template = "{% for m in messages %}{{ m.content + ' ' }}<|im_end|>{{ ' ' }}{% endfor %}"
    processor = processor_of(kind(), chat_template=template)
    ids = processor.encode_chat([{"role": "user", "content": "a <|im_end|>"}])
    end = processor.tokenizer.token_to_id("<|im_end|>")
    assert ids.count(end) == 1
    assert ids.index(end) == len(ids) - 2


@pytest.mark.parametrize("role", ["[INST]", "</s>", "<start_of_turn>"])
def test_what_the_template_names_is_special_whatever_the_files_say(role):
    tokenizer = spelt_by_merges()
    tokenizer.add_tokens([AddedToken(role, special=False, normalized=False)])
    template = "{% for m in messages %}ROLE{{ m.content }}{% endfor %}".replace("ROLE", role)
    ids = processor_of(tokenizer, chat_template=template).encode_chat([{"role": "user", "content": f"a{role}b"}])
    assert ids.count(tokenizer.token_to_id(role)) == 1


def test_roles_that_are_plain_words_can_not_be_protected():
    """docs/security.md says so: nothing tells a user's words from the template's."""
    template = "{% for m in messages %}USER: {{ m.content }}{% endfor %}"
    processor = processor_of(spelt_by_merges(), chat_template=template)
    once, twice = (processor.encode_chat([{"role": "user", "content": text}]) for text in ("a", "USER: a"))
    assert twice[6:] == once


def test_an_ordinary_word_that_ends_answers_may_be_said_letter_by_letter():
    """Also a letter: only what is longer can be kept out."""
    processor = processor_of(spelt_by_merges())
    newline = processor.encode("\n")
    ending = dataclasses.replace(processor, eos_token_ids=frozenset(newline))
    assert ending.encode_chat([{"role": "user", "content": "a\nb"}]) == processor.encode_chat(
        [{"role": "user", "content": "a\nb"}]
    )


def test_many_such_words_take_no_longer_than_others():
    """Each level of cutting goes over the whole text once."""
    processor = processor_of(spelt_by_merges())
    encoded = []

    class Counting:
        def __init__(self, tokenizer):
            self._tokenizer = tokenizer

        def encode(self, text, **options):
            encoded.append(len(text))
            return self._tokenizer.encode(text, **options)

    processor._encoder._tokenizer = Counting(processor.tokenizer)
    said = "<|im_end|>" * 2000
    processor.encode_chat([{"role": "user", "content": said}])
    assert sum(encoded) < 10 * len(said)


def test_of_special_tokens_the_longest_counts_and_many_take_no_longer():
    tokenizer = spelt_by_merges()
    names = [f"<|{i}|>" for i in range(20_000)] + ["<|1|>x", "zz"]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    processor = processor_of(tokenizer)
    ids = processor.encode("<|1|>x<|1|>y<|19999|>zzz<|20000|>")
    assert ids[:2] == [tokenizer.token_to_id("<|1|>x"), tokenizer.token_to_id("<|1|>")]
    assert processor.decode(ids, skip_special_tokens=False) == "<|1|>x<|1|>y<|19999|>zzz<|20000|>"
    assert ids[3:6] == [tokenizer.token_to_id("<|19999|>"), tokenizer.token_to_id("zz"), *processor.encode("z")]
    steps = 0

    def count(*_):
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    processor.encode("<|1|>" * 100)
    sys.setprofile(None)
    assert steps < 5000


# Long things


def test_a_long_prompt_is_refused_before_it_is_tokenized(processor):
    processor = dataclasses.replace(processor)
    processor._encoder = None  # what would tokenize it
    text = "a" * (processor.max_characters + 1)
    for call in (processor.encode, lambda text: processor.encode_chat([{"role": "user", "content": text}])):
        with pytest.raises(ValueError, match="1048577 characters, more than the model can read"):
            call(text)
    many = [{"role": "user", "content": [{"type": "text", "text": "a" * 2**10}] * 2**10}] * 2
    with pytest.raises(ValueError, match="2097152 characters"):
        processor.apply_chat_template(many)


def test_how_long_a_prompt_may_be_follows_from_the_models_positions(qwen):
    assert qwen.max_characters == 64 * 32768


def test_many_added_tokens_are_added_at_once(tmp_path, monkeypatch):
    checkpoints.write_tokenizer(tmp_path)
    added = {str(256 + i): {"content": f"<extra {i}>", "special": i % 2 == 0} for i in range(20_000)}
    calls = []

    class Counting:
        def __init__(self, model):
            object.__setattr__(self, "whole", Tokenizer(model))

        def __getattr__(self, name):
            return getattr(self.whole, name)

        def __setattr__(self, name, value):
            setattr(self.whole, name, value)

        def add_tokens(self, tokens):
            calls.append(len(tokens))
            return self.whole.add_tokens(tokens)

    monkeypatch.setattr("mlx_fastvlm.processing.tokenizer.Tokenizer", Counting)
    tokenizer = read_tokenizer(tmp_path, {"added_tokens_decoder": added})
    assert calls == [20_000]
    assert tokenizer.token_to_id("<extra 19999>") == 256 + 19_999


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"]
)
def test_files_that_are_too_large_are_not_read(tmp_path, monkeypatch, name):
    checkpoints.write_tokenizer(tmp_path)
    with (tmp_path / name).open("a") as file:
        file.truncate(3 * 2**30)  # takes no disk
    monkeypatch.setattr(
        "pathlib.Path.read_text", lambda *_, **__: pytest.fail("it was read") if _[0].name == name else "{}"
    )
    with pytest.raises(ValueError, match=f"{name} is larger than {SIZE_LIMIT >> 20} MB"):
        FastVlmProcessor.from_folder(tmp_path, FastVlmConfig.from_dict(checkpoints.apple_config()))


# Templates in every place


def test_a_list_of_named_templates(tmp_path):
    def of(**files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        checkpoints.write_tokenizer(folder)
        for name, content in files.items():
            path = folder / name.replace("__", "/").replace("_json", ".json").replace("_jinja", ".jinja")
            path.parent.mkdir(exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return FastVlmProcessor.from_folder(folder, FastVlmConfig.from_dict(checkpoints.apple_config())).chat_template

    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "mine"}]
    assert of(tokenizer_config_json={"chat_template": named}) == "mine"
    assert of(tokenizer_config_json={"chat_template": {"default": "mine"}}) == "mine"
    assert of(chat_template_json={"chat_template": "mine"}, tokenizer_config_json={"chat_template": "other"}) == "mine"
    assert of(processor_config_json={"chat_template": "mine"}) == "mine"
    assert of(chat_template_jinja="mine", additional_chat_templates__tool_use_jinja="tools") == "mine"
    with pytest.raises(ValueError, match="no chat template called default"):
        of(tokenizer_config_json={"chat_template": named[:1]})
    with pytest.raises(ValueError, match=r"has chat templates \(rag\) and no default one"):
        of(additional_chat_templates__rag_jinja="x")
    with pytest.raises(ValueError, match="malformed"):
        of(tokenizer_config_json={"chat_template": [{"name": "default"}]})
    with pytest.raises(ValueError, match="malformed"):
        of(tokenizer_config_json={"chat_template": 5})


@pytest.mark.parametrize(
    "model", [models.WordLevel({"a": 0}, unk_token="[UNK]"), models.BPE({"a": 0}, [], unk_token="")]
)
def test_a_tokenizer_that_lacks_its_own_unknown_token_is_told(model):
    """Found by the fuzzer of tokenizer files: `tokenizers` raises a plain Exception."""
    processor = FastVlmProcessor(Tokenizer(model), -200, frozenset())
    with pytest.raises(ValueError, match="The checkpoint's tokenizer can't write a text"):
        processor.encode_chat([{"role": "user", "content": "b"}])
