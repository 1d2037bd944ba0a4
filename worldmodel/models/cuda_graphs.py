"""A rollout step as one CUDA graph: a single launch instead of some four thousand small kernel launches."""

import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_RECORDINGS = 4  # each holds the memory of its arguments, results and intermediate tensors


class Recording(NamedTuple):
    """A recorded function whose arguments and results keep their addresses."""

    arguments: Any
    replay: Callable[[], None]  # recomputes the results from the current contents of the arguments
    results: Any


class CUDAGraphed:
    """A function of tensors that is recorded at its first call and replayed afterwards.

    There is one recording for each combination of shapes, types, devices and constants. On the CPU, where there is
    nothing to gain, a replay calls the function.

    Args:
        function: function of tensors, nested tuples of tensors and constants, returning tensors or nested tuples of
            them. On CUDA it must not synchronize: no ``.item()``, no index on the CPU.
        parameters: function that returns the other tensors that ``function`` reads. They may change in place; if one
            moves to another address, everything is recorded again.
    """

    def __init__(self, function: Callable[..., Any], parameters: Callable[[], Iterable[Tensor]]) -> None:
        self.function, self.parameters = function, parameters
        self.recordings: dict[Any, Recording] = {}
        self.addresses: list[int] = []
        self.lock = threading.Lock()  # two threads must not write to the same arguments

    @torch.inference_mode(False)  # a tensor made in inference mode could not be written to outside of it
    @torch.no_grad()
    def __call__(self, *arguments: Any) -> Any:
        """Return the function's results for these arguments, as new tensors that no later call changes."""
        tensors = _tensors(arguments)
        key = _map_tensors(lambda tensor: (tensor.shape, tensor.dtype, tensor.device), arguments)
        with self.lock, torch.cuda.device_of(tensors[0]):
            addresses = [parameter.data_ptr() for parameter in self.parameters()]
            if addresses != self.addresses:
                self.recordings.clear()
                self.addresses = addresses
            recording = self.recordings.pop(key, None) or _record(self.function, arguments)
            self.recordings[key] = recording  # keep the most recently used last
            if len(self.recordings) > MAX_RECORDINGS:
                del self.recordings[next(iter(self.recordings))]
            for static, tensor in zip(_tensors(recording.arguments), tensors, strict=True):
                static.copy_(tensor)
            recording.replay()
            return _map_tensors(torch.clone, recording.results)


def _record(function: Callable[..., Any], arguments: tuple) -> Recording:
    arguments = _map_tensors(torch.clone, arguments)
    if not _tensors(arguments)[0].is_cuda:
        results = function(*arguments)

        def replay() -> None:
            for static, tensor in zip(_tensors(results), _tensors(function(*arguments)), strict=True):
                static.copy_(tensor)

        return Recording(arguments, replay, results)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # libraries set themselves up at a first call, which must not be recorded
            function(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the device meanwhile
        results = function(*arguments)
    return Recording(arguments, graph.replay, results)


def _map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply a function to every tensor of nested tuples."""
    if isinstance(tree, Tensor):
        return function(tree)
    if not isinstance(tree, tuple):
        return tree
    parts = [_map_tensors(function, part) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


def _tensors(tree: Any) -> list[Tensor]:
    """Return the tensors of nested tuples, in order."""
    found: list[Tensor] = []
    _map_tensors(found.append, tree)
    return found
