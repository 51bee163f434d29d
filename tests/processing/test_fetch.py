"""An address becomes the bytes of an image, or one clear error."""

import pytest

from mlx_fastvlm import load_image


def test_urls_that_fail(server):
    with pytest.raises(OSError, match="404"):
        load_image(f"{server}/missing")
    with pytest.raises(OSError, match="302"):
        load_image(f"{server}/moved")
    with pytest.raises(OSError, match="could not be fetched"):
        load_image("http://127.0.0.1:9/nothing-listens-here")


def test_urls_that_are_too_large_or_too_slow(server, monkeypatch):
    monkeypatch.setattr("mlx_fastvlm.processing.fetch.URL_DEADLINE", 0.2)
    with pytest.raises(OSError, match=r"took more than 0\.2 s"):
        load_image(f"{server}/endless")
    monkeypatch.setattr("mlx_fastvlm.processing.fetch.URL_DEADLINE", 60)
    monkeypatch.setattr("mlx_fastvlm.processing.fetch.URL_LIMIT", 20)
    with pytest.raises(OSError, match="is larger than"):
        load_image(f"{server}/picture")
