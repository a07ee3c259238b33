"""Functions called in several processes at once, as torchrun would start them."""

import faulthandler
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

_STARTING = multiprocessing.get_context("forkserver")
# Imports torch once for all processes, which then start in no time. It has never computed a gradient, after which
# torch refuses to in a fork.
_STARTING.set_forkserver_preload(["rmat.training.loop", "tests.makers.runs"])


def together(count: int, work: Callable[..., Any], *arguments: Any, timeout: float = 120) -> list[Any]:
    """What `work`, a function of a module, returns in each of `count` processes; raises AssertionError with
    the traceback if one of them raises or is not done in `timeout` seconds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ends, processes = [], []
    for rank in range(count):
        mine, theirs = _STARTING.Pipe()
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        process = _STARTING.Process(target=_call, args=(theirs, place, work, arguments, timeout))
        process.start()
        theirs.close()
        ends.append(mine)
        processes.append(process)
    found: dict[int, Any] = {}
    try:
        while waiting := [end for rank, end in enumerate(ends) if rank not in found]:
            ready = wait(waiting, timeout)
            assert ready, f"{len(waiting)} of {count} processes are not done after {timeout:g} seconds"
            for end in ready:
                fine, result = end.recv()  # type: ignore[union-attr]
                rank = ends.index(end)  # type: ignore[arg-type]
                assert fine, f"process {rank} of {count}:\n{result}"
                found[rank] = result
        return [found[rank] for rank in range(count)]
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()


def _call(
    end: Connection, place: dict[str, int], work: Callable[..., Any], arguments: Any, timeout: float
) -> None:
    faulthandler.dump_traceback_later(0.9 * timeout)  # where it hangs
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}
    try:
        end.send((True, work(*arguments)))
    except BaseException:
        end.send((False, traceback.format_exc()))
