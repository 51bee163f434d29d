"""No request, however odd, makes the server fail; docs/security.md tells of long runs."""

import pytest

from tests.support import described, http_cases


def test_odd_requests_over_http():
    statuses, wrong = http_cases.run(150, seed=1)
    assert not wrong
    assert statuses[200] > 5
    assert statuses[400] > 50


def test_requests_as_described():
    pytest.importorskip("schemathesis", reason="needs schemathesis, which no extra installs: pip install schemathesis")
    count, told, statuses = described.run(12, seed=1)
    assert count >= 8, told
    assert sum(number for (path, status), number in statuses.items() if (path[:4], status) == ("/v1/", "200")) > 1
