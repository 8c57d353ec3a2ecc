"""What the processes of one job, its ranks, say to each other beside gradients. Alone, a process asks nobody.

Rank 0 decides where they have to agree: when to stop, when to save. All of this goes over gloo on the CPU, so that no
GPU has to finish what it computes for it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

_TIMEOUT = timedelta(days=7)
"""No limit: whether a job hangs is judged by its heartbeat, which rank 0 renews, and which stops where it waits."""

_control: dist.ProcessGroup | None = None


def join(rendezvous: socket.socket, *, on_gpu: bool) -> None:
    """Make this process one of its job's ranks (`jobs.ranks`): NCCL between GPUs, gloo between CPUs."""
    global _control
    # All ranks are on this machine: nobody else has to reach them.
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    rank, number = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # Where rank 0 did not pass its listening socket, torch would listen on all interfaces.
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        number,
        is_master=rank == 0,
        timeout=_TIMEOUT,
        master_listen_fd=rendezvous.detach() if rank == 0 else None,
    )
    if rank != 0:
        rendezvous.close()
    if on_gpu:
        torch.cuda.set_device(rank)
    else:
        threads = max(1, torch.get_num_threads() // number)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # accelerate would count the cores again
        torch.set_num_threads(threads)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=number, timeout=_TIMEOUT)
    _control = dist.new_group(backend="gloo", timeout=_TIMEOUT)


def number_of_ranks() -> int:
    return dist.get_world_size() if _control is not None else 1


def said_by_first(*flags: bool) -> tuple[bool, ...]:
    """The flags of rank 0, which every rank must ask for at the same point."""
    if _control is None:
        return flags
    said = torch.tensor(flags, dtype=torch.uint8)
    dist.broadcast(said, src=0, group=_control)
    return tuple(bool(flag) for flag in said)


def wait_for_all() -> None:
    """Until every rank is at this point."""
    if _control is not None:
        dist.barrier(group=_control)


def largest(value: int) -> int:
    """The largest value of any rank."""
    if _control is None:
        return value
    most = torch.tensor([value])
    dist.all_reduce(most, op=dist.ReduceOp.MAX, group=_control)
    return int(most.item())


def summed_over_ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Of each name, the sum over all ranks, which have the same names."""
    if _control is None:
        return dict(values)
    names = sorted(values)
    sums = torch.tensor([values[name] for name in names], dtype=torch.float64)
    dist.all_reduce(sums, group=_control)
    return dict(zip(names, sums.tolist(), strict=True))
