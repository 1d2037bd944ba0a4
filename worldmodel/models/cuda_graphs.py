"""A step of a dream as one CUDA graph: some four thousand small kernels, started by one call instead of one by one."""

import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

KEPT = 4  # recordings: each holds the memory that its arguments, its results and all between them need


class Recording(NamedTuple):
    """A function, recorded with arguments and results that stay where they are."""

    arguments: Any
    replay: Callable[[], None]  # computes the results anew from what the arguments hold now
    results: Any


class Replayed:
    """A function of tensors that is recorded at its first call and replayed from then on.

    There is one recording for each combination of shapes, types, devices and constants. On the CPU, where there is
    nothing to gain, a replay calls the function.

    Args:
        function: takes tensors, nested tuples of them and constants, and returns tensors or nested tuples of them. On
            CUDA it must not wait for the device: no ``.item()``, no index that lies on the CPU.
        parameters: returns the other tensors that the function reads. They may change in place; once one of them lies
            elsewhere, everything is recorded anew.
    """

    def __init__(self, function: Callable[..., Any], parameters: Callable[[], Iterable[Tensor]]) -> None:
        self.function, self.parameters = function, parameters
        self.recordings: dict[Any, Recording] = {}
        self.places: list[int] = []
        self.lock = threading.Lock()  # two threads must not write to the same arguments

    @torch.inference_mode(False)  # a tensor made in that mode could not be written to out of it
    @torch.no_grad()
    def __call__(self, *arguments: Any) -> Any:
        """What the function returns for these arguments; tensors of the caller's own, which no later call changes."""
        tensors = _tensors(arguments)
        key = _map(lambda tensor: (tensor.shape, tensor.dtype, tensor.device), arguments)
        with self.lock, torch.cuda.device_of(tensors[0]):
            places = [parameter.data_ptr() for parameter in self.parameters()]
            if places != self.places:
                self.recordings.clear()
                self.places = places
            recording = self.recordings.pop(key, None) or _record(self.function, arguments)
            self.recordings[key] = recording  # the last used stands last
            if len(self.recordings) > KEPT:
                del self.recordings[next(iter(self.recordings))]
            for held, tensor in zip(_tensors(recording.arguments), tensors, strict=True):
                held.copy_(tensor)
            recording.replay()
            return _map(torch.clone, recording.results)


def _record(function: Callable[..., Any], arguments: tuple) -> Recording:
    arguments = _map(torch.clone, arguments)
    if not _tensors(arguments)[0].is_cuda:
        results = function(*arguments)

        def replay() -> None:
            for held, tensor in zip(_tensors(results), _tensors(function(*arguments)), strict=True):
                held.copy_(tensor)

        return Recording(arguments, replay, results)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # what libraries set up at a first call must not be recorded
            function(*arguments)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the device meanwhile
        results = function(*arguments)
    return Recording(arguments, graph.replay, results)


def _map(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply a function to every tensor of nested tuples."""
    if isinstance(tree, Tensor):
        return function(tree)
    if not isinstance(tree, tuple):
        return tree
    parts = [_map(function, part) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors of nested tuples, in order."""
    found: list[Tensor] = []
    _map(found.append, tree)
    return found
