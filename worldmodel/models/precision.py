"""Devices and threads, and layers in the precision and weight layout that the hardware multiplies fastest."""

import copy
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from worldmodel.checks import check_threads
from worldmodel.models.config import Precision

M = TypeVar("M", bound=nn.Module)
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type of a precision; auto is bfloat16 if the hardware multiplies it, otherwise float32.

    Raises:
        ValueError: if there is no such precision.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision == "auto":
        return torch.bfloat16 if has_native_bfloat16(device) else torch.float32
    if precision not in dtypes:
        raise ValueError(f"precision must be auto, float32 or bfloat16, got {precision!r}")
    return dtypes[precision]


def check_device(name: str | torch.device) -> torch.device:
    """Return the device with this name.

    Raises:
        ValueError: if this machine has no such device.
    """
    try:
        if torch.zeros((), device=name).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"there is no device {str(name)!r} here ({error}); use the device cpu") from error
    return torch.device(name)


def has_native_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware multiplies bfloat16 natively: CUDA since Ampere, AVX512-BF16, AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return _cpu_has("avx512_bf16") or _cpu_has("amx_bf16")


def use_threads(threads: int) -> None:
    """Set the number of CPU threads of torch.

    Raises:
        ValueError: as :func:`worldmodel.checks.check_threads`.
    """
    check_threads(threads)
    torch.set_num_threads(threads)


def prepare_for_inference(module: M, dtype: torch.dtype, float32_children: tuple[str, ...] = ()) -> M:
    """Return a copy whose linear layers and convolutions multiply in ``dtype``, their weights converted once.

    Everything else stays float32: the inputs and outputs of these layers, norms, softmax and sums. The copy is for
    inference, not for training or saving.

    Args:
        float32_children: names of children that multiply in float32 regardless.
    """
    module = copy.deepcopy(module).requires_grad_(False)
    for name in float32_children:
        setattr(module, name, _convert_layers(getattr(module, name), torch.float32))
    return cast(M, _convert_layers(module, dtype, float32_children))  # a bare layer may be wrapped, but is called alike


class CastLayer(nn.Module):
    """A layer that computes in another type than that of its input and output."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x``."""
        return self.layer(x.to(self.dtype)).to(x.dtype)


class PackedLinear(nn.Module):
    """A float32 linear layer with weights in oneDNN's layout."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach()), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) -> (…, outputs)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def _convert_layers(module: nn.Module, dtype: torch.dtype, skip: tuple[str, ...] = ()) -> nn.Module:
    if isinstance(module, CONVOLUTIONS):
        module = module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # not in torch's stubs
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)) and module.weight.dtype != dtype:
        return CastLayer(module, dtype)
    if isinstance(module, nn.Linear) and _uses_onednn(module.weight):
        return PackedLinear(module)
    for name, child in module.named_children():
        if name not in skip:
            setattr(module, name, _convert_layers(child, dtype))
    return module


def _uses_onednn(weight: Tensor) -> bool:
    """Return whether oneDNN should multiply: with AVX-512, which MKL hardly uses on processors other than Intel's."""
    available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return available and weight.device.type == "cpu" and weight.dtype == torch.float32 and _cpu_has("avx512_f")


def _cpu_has(feature: str) -> bool:
    return bool(getattr(torch.cpu, "get_capabilities", dict)().get(feature))  # missing in older torch
