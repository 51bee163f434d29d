"""schemathesis over /openapi.json: requests as it describes them and others; answers as it says, and no 5xx.

    python -m tests.support.described [CASES] [SEED]

Needs ``pip install schemathesis``. The cases go to the addresses that answer, a quarter to each, and a few elsewhere.
What no JSON schema says, that an address leads to an image and that fields go together, random bodies hardly ever
meet; so ``described_hooks.py`` mends half of them in that respect, and they are answered.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from mlx_fastvlm.server.app import ANSWERING
from tests.support.server import running

# All of schemathesis's checks of one response but those that hold what JSON schemas can't say against the server: a
# body may fit the description and be refused, as for an image that is none, and unknown fields are ignored.
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "allow_header_conformance",
]
COUNTED = r'fastvlm_requests_total{endpoint="(.+)",status="(\w+)"} (\d+)'


def run(cases: int, seed: int = 0) -> tuple[int, str, Counter]:
    """How many requests were sent, what schemathesis said, and the statuses; it raises where there is a finding."""
    limits = {"max_tokens": 16, "default_max_tokens": 4, "max_queue": 200}
    each = max(1, cases // len(ANSWERING))
    with tempfile.TemporaryDirectory() as folder, running(image_root=Path(folder), **limits) as server:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
        command += [
            "--checks",
            ",".join(CHECKS),
            "--phases",
            "examples,fuzzing",
            "--max-examples",
            str(each),
        ]
        command += ["--seed", str(seed), "--continue-on-failure", "--suppress-health-check", "all"]
        command += ["--generation-database", "none", "--no-color", "--request-timeout", "60"]
        hooks = {"SCHEMATHESIS_HOOKS": "tests.support.described_hooks", "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, **hooks})
        with server.client() as client:
            counted = re.findall(
                r'fastvlm_requests_total{endpoint="(.+)",status="(\w+)"} (\d+)', client.get("/metrics").text
            )
    if done.returncode:
        raise AssertionError(f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}")
    sent = re.search(r"(\d[\d,]*) generated", done.stdout)
    statuses: Counter = Counter()
    for endpoint, status, count in counted:
        statuses[endpoint, status] += int(count)
    return int(sent[1].replace(",", "")) if sent else 0, done.stdout, statuses


if __name__ == "__main__":
    count, told, statuses = run(*map(int, sys.argv[1:3])) if len(sys.argv) > 1 else run(1000)
    print(told)
    print(f"{count} requests", *sorted(statuses.items()), sep="\n")
