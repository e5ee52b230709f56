"""The ranks of one expert-parallel group, and what they exchange: torch.distributed behind a few verbs.

Owns meeting (`Group.join`), the collectives of a step and their deadline, and the words that rank 0 says to the others.
Tensors go by NCCL on GPUs and by gloo on CPUs; words always by gloo, without a deadline, since an idle group is silent.
That a rank is gone while nobody exchanges anything is noticed by `pulse`. What is computed where is not known here.
"""

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from m3_worker.config import RankSettings
from m3_worker.ranks.errors import GroupError

Json = str | int | float | dict[str, str] | None
"""What ranks tell each other before the first step."""

_WORDS_TIMEOUT = timedelta(days=3650)
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Group:
    """This process as one of `ranks`. Every method is called by all ranks, in the same order, from one thread each."""

    rank: int
    ranks: int
    device: torch.device
    store: Store
    _words: dist.ProcessGroup | int
    """For words; an int only in torch's annotations, for ranks outside of a group."""

    @classmethod
    def join(
        cls, settings: RankSettings, device: torch.device, *, join_seconds: float, exchange_seconds: float
    ) -> "Group":
        """Meet the other ranks at `settings.master_address`, where rank 0 listens.

        join_seconds: how long to wait for them. exchange_seconds: how long one exchange of a step may take.
        Raises GroupError if they do not come, or run something else than this rank.
        """
        where = f"{settings.master_address}:{settings.master_port}"
        with _as_group_error(f"rank {settings.rank} of {settings.world_size} cannot meet the others at {where}"):
            store = _meet(settings, join_seconds)
            if settings.nodes == 1:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            is_cuda = device.type == "cuda"
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
                store=PrefixStore("torch", store),
                rank=settings.rank,
                world_size=settings.world_size,
                # NCCL ends the process when its time is over: the engine's watchdog, which tells, must come first.
                timeout=timedelta(seconds=exchange_seconds * (2 if is_cuda else 1)),
                device_id=device if is_cuda else None,
            )
            words = dist.new_group(backend="gloo", timeout=_WORDS_TIMEOUT)
        group = cls(settings.rank, settings.world_size, device, store, words)
        group.agree("software", _software(device), join_seconds)
        return group

    def leave(self) -> None:
        """Close the connections. Whoever still waits for this rank gets an error."""
        dist.destroy_process_group()

    # Before the first step.

    def tell_all(self, topic: str, value: Json, seconds: float) -> list[Json]:
        """What every rank says on a topic, by rank. Raises GroupError if one says nothing in time."""
        self.store.set(f"{topic}/{self.rank}", json.dumps(value))
        answers = []
        for rank in range(self.ranks):
            with _as_group_error(f"rank {rank} did not tell its {topic} within {seconds:g} s"):
                self.store.wait([f"{topic}/{rank}"], timedelta(seconds=seconds))
                answers.append(json.loads(self.store.get(f"{topic}/{rank}")))
        return answers

    def agree(self, topic: str, value: Json, seconds: float) -> None:
        """Raise GroupError, which names both, unless every rank says the same."""
        answers = self.tell_all(topic, value, seconds)
        for rank, answer in enumerate(answers):
            if answer != answers[0]:
                raise GroupError(f"rank {rank} has another {topic} than rank 0: {answer}, not {answers[0]}")

    # In a step: tensors.

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over all ranks, in place; the same bits on each."""
        with _exchange("all-reduce"):
            dist.all_reduce(x)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """[n, ...], of the same shape on all ranks -> [ranks * n, ...], by rank."""
        out = x.new_empty((self.ranks * len(x), *x.shape[1:]))
        with _exchange("all-gather"):
            dist.all_gather_into_tensor(out, x.contiguous())
        return out

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """[ranks * n, ...] -> [n, ...]: the sum over all ranks of this rank's part."""
        out = x.new_empty((len(x) // self.ranks, *x.shape[1:]))
        with _exchange("reduce-scatter"):
            dist.reduce_scatter_tensor(out, x.contiguous())
        return out

    def all_to_all(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Rows [sum(sent), ...] by the rank they go to -> rows [sum(received), ...] by the rank they came from."""
        out = x.new_empty((sum(received), *x.shape[1:]))
        with _exchange("all-to-all"):
            dist.all_to_all_single(out, x.contiguous(), list(received), list(sent))
        return out

    # Between steps: words of rank 0.

    def say(self, tensors: Sequence[Tensor]) -> None:
        """Rank 0: send tensors of known shapes to all others, who `hear` them."""
        self._broadcast(tensors)

    def hear(self, tensors: Sequence[Tensor]) -> None:
        """Other ranks: wait, however long, for what rank 0 says next; it is written into `tensors`."""
        self._broadcast(tensors)

    def _broadcast(self, tensors: Sequence[Tensor]) -> None:
        with _exchange("broadcast"):
            for tensor in tensors:
                if tensor.numel():
                    dist.broadcast(tensor, src=0, group=self._words)  # type: ignore[arg-type]


def _meet(settings: RankSettings, seconds: float) -> TCPStore:
    """The store that all ranks share. Rank 0 listens at the group's own address and at no other."""
    is_first = settings.rank == 0
    listener = _listen(settings, seconds) if is_first else None
    return TCPStore(
        settings.master_address,
        settings.master_port,
        settings.world_size,
        is_master=is_first,
        timeout=timedelta(seconds=seconds),
        master_listen_fd=None if listener is None else listener.detach(),
    )


def _listen(settings: RankSettings, seconds: float) -> socket.socket:
    """A listener at the master address. Its name may not resolve yet when a pod has just started."""
    began = time.monotonic()
    while True:
        try:
            family, *_, address = socket.getaddrinfo(
                settings.master_address, settings.master_port, type=socket.SOCK_STREAM
            )[0]
            break
        except socket.gaierror:
            if time.monotonic() - began > seconds:
                raise
            time.sleep(_LOOK_SECONDS)
    return socket.create_server(address[:2], family=family, backlog=settings.world_size)


def _software(device: torch.device) -> dict[str, str]:
    """What must be equal, or ranks would round differently what all of them compute, and disagree on who goes where."""
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "chip": chip}


@contextmanager
def _exchange(what: str) -> Iterator[None]:
    with _as_group_error(f"an exchange between ranks failed ({what}): a rank is gone or hangs"):
        yield


@contextmanager
def _as_group_error(about: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:  # dist.DistError is a RuntimeError
        raise GroupError(f"{about}: {str(error).splitlines()[0]}") from error
