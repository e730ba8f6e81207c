"""Copies between a GPU and messages: what happens on a CPU, and in which order on a GPU, which is imitated."""

import pytest
import torch

from fedh2l_mpi.exchange import ArraySpec, Exchange, host_memory
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.topology import Graph


def test_on_a_cpu_nothing_is_copied():
    tensor = torch.arange(6.0).reshape(2, 3)
    assert host_memory.to_host(tensor) is tensor
    turned = host_memory.to_host(tensor.T)
    assert turned.is_contiguous()
    assert torch.equal(turned, tensor.T)


def test_a_buffer_has_the_shape_and_type_asked_for():
    buffer = host_memory.host_buffer((2, 3), torch.float64)
    assert (buffer.shape, buffer.dtype, buffer.device.type) == ((2, 3), torch.float64, "cpu")
    assert buffer.is_contiguous()


class Gpu:
    """Notes what is asked of CUDA; page-locked memory is ordinary memory here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.did: list[str] = []
        self._empty = torch.empty
        monkeypatch.setattr(torch, "empty", self.empty)
        monkeypatch.setattr(torch.cuda, "current_stream", self.stream)

    def empty(self, *shape: object, pin_memory: bool = False, **options: object) -> torch.Tensor:
        self.did.append("pinned" if pin_memory else "pageable")
        made = self._empty(*shape, **options)
        return made.as_subclass(Noting).of(self) if pin_memory else made

    def stream(self, device: object) -> "Gpu":
        self.did.append(f"stream of {device}")
        return self

    def synchronize(self) -> None:
        self.did.append("synchronised")


class Noting(torch.Tensor):
    """A buffer that notes how it is copied into."""

    def of(self, gpu: Gpu) -> "Noting":
        self.gpu = gpu
        return self

    def copy_(self, source: object, non_blocking: bool = False) -> torch.Tensor:
        self.gpu.did.append(f"copy, non_blocking={non_blocking}")
        return super().copy_(source.numbers)


class OnGpu:
    """A tensor of a GPU's, as far as it is looked at from outside."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self.numbers, self.device = numbers, torch.device("cuda:1")
        self.shape, self.dtype = numbers.shape, numbers.dtype


def test_from_a_gpu_a_tensor_is_complete_in_pinned_memory_before_anyone_can_send_it(monkeypatch):
    gpu = Gpu(monkeypatch)
    numbers = torch.arange(6.0).reshape(2, 3)
    staged = host_memory.to_host(OnGpu(numbers))
    assert gpu.did == ["pinned", "copy, non_blocking=True", "stream of cuda:1", "synchronised"]
    assert torch.equal(staged.as_subclass(torch.Tensor), numbers)


@pytest.mark.parametrize("pinned", [False, True])
def test_what_arrives_is_handed_out_in_pinned_memory_where_it_goes_to_a_gpu(monkeypatch, pinned):
    exchange = Exchange(World(None), Hosting(3, 1), ArraySpec("logits", 2, 2), deadline_s=1.0, pinned=pinned)
    published = {index: torch.full((2, 2), float(index)) for index in range(3)}
    exchange.start(0, Graph(3, [(0, 1), (1, 2)]), published)
    theirs = exchange.finish()
    gpu = Gpu(monkeypatch)
    assert theirs[1].as_subclass(torch.Tensor).tolist() == [[[0.0, 0.0]] * 2, [[2.0, 2.0]] * 2]
    assert gpu.did == (["pinned"] if pinned else [])
