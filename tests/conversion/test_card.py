"""What a model card says for the hub: licence, base model, library."""

import pytest

from mlx_fastvlm.conversion.card import Origin

APPLES = "---\nlicense: apple-amlr\nlicense_name: apple-ascl\nbase_model:\n- apple/FastVLM-0.5B\n---\n# FastVLM\n"


@pytest.mark.parametrize(
    ("card", "source", "base_model", "terms"),
    [
        (None, "apple/FastVLM-7B", "apple/FastVLM-7B", {"license": "apple-amlr"}),
        (None, "me/finetuned", "me/finetuned", {"license": "other", "license_name": "as-the-source"}),
        (APPLES, "folder", "apple/FastVLM-0.5B", {"license": "apple-amlr", "license_name": "apple-ascl"}),
        ("---\nlicense: mit\n---\n", "me/finetuned", "me/finetuned", {"license": "mit"}),
        ("no front matter\nlicense: mit\n", "folder", None, {"license": "other", "license_name": "as-the-source"}),
        ("---\nlicense: [mit]\n---\n", "folder", None, {"license": "other", "license_name": "as-the-source"}),
    ],
)
def test_where_it_comes_from(tmp_path, card, source, base_model, terms):
    if card:
        (tmp_path / "README.md").write_text(card)
    origin = Origin.read(source, tmp_path, [])
    assert (origin.base_model, origin.license) == (base_model, terms)
