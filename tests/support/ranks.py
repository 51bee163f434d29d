"""Processes that MLX's ring connects, on loopback."""

import contextlib
import json
import os
import random
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.support.processes import run, start

# Linux takes the ports of connections from 32768 on, macOS from 49152: a test beside this one could be given one there.
PORTS = range(20000, 32000)


def free_ports(count):
    """So many in a row, as mlx.launch takes them."""
    while True:
        first = random.choice(PORTS)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            ports = range(first, first + count)
            for port in ports:
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return ports


def start_ranks(command, folder, count=2, ports=None):
    """Start a command once for each rank, with the variables that mlx.launch sets."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports or free_ports(count)]))
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
        launcher = [sys.executable, "-c", "from mlx._distributed_utils.launch import main; main()"]
        how = ["-n", count, "--backend", "ring", "--starting-port", free_ports(count).start]
        return run([*launcher, *how, "--", sys.executable, "-m", *arguments], stdin=ours, timeout=timeout)
    finally:
        os.close(ours)
        os.close(theirs)
