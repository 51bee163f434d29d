"""No request, however odd, makes the server fail; docs/security.md tells of a long run."""

from tests.support import http_cases


def test_odd_requests_over_http():
    statuses, wrong = http_cases.run(150, seed=1)
    assert not wrong
    assert statuses[200] > 5
    assert statuses[400] > 50
