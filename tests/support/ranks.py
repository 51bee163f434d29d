"""Processes that MLX's ring connects, on loopback."""

import json
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.support.processes import run, start


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def start_ranks(command, folder, count=2):
    """Start a command once for each rank, with the variables that mlx.launch sets."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(count)]))
    environment = os.environ | {"MLX_HOSTFILE": str(hosts)}
    return [start(command, env=environment | {"MLX_RANK": str(rank)}) for rank in range(count)]


def finish(processes, timeout=120):
    """Wait for all: the exit code, output and errors of each."""
    try:
        # At a time: one whose pipe is full would hold up all others.
        with ThreadPoolExecutor(len(processes)) as pool:
            ends = list(pool.map(lambda process: process.communicate(timeout=timeout), processes))
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, out, err) for process, (out, err) in zip(processes, ends)]


def launch(arguments, count=2, timeout=120):
    """``mlx.launch`` with ``python -m`` and these arguments. Its standard input stays open, or it would spin."""
    ours, theirs = os.pipe()
    try:
        port = str(free_ports(1)[0])
        words = ["-n", str(count), "--backend", "ring", "--starting-port", port, "--", sys.executable, "-m", *arguments]
        launcher = [sys.executable, "-c", "from mlx._distributed_utils.launch import main; main()"]
        return run([*launcher, *words], stdin=ours, timeout=timeout)
    finally:
        os.close(ours)
        os.close(theirs)
