"""Child processes in which Ctrl-C works, however pytest itself was started."""

import contextlib
import signal
import subprocess
import threading


@contextlib.contextmanager
def _listening():
    """A child inherits an ignored SIGINT, and the shell ignores it for what a script starts in the background."""
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if not ignored or threading.current_thread() is not threading.main_thread():  # only that one may change it
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def start(command, **options):
    """``subprocess.Popen`` with both outputs in pipes, as text."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    with _listening():
        return subprocess.Popen(list(map(str, command)), **options)


def run(command, *, timeout=300, **options):
    """Start a command, and wait for it: its ``returncode``, ``stdout`` and ``stderr``."""
    process = start(command, **options)
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)
