"""Layers in the precision, and with weights in the layout, in which the processor at hand multiplies fastest."""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["auto", "float32", "bfloat16"]
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def pick(precision: Precision, device: torch.device) -> torch.dtype:
    """The type that ``precision`` names; for auto bfloat16 if the hardware multiplies it, otherwise float32.

    Raises:
        ValueError: if it names none.
    """
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    if precision not in named:
        raise ValueError(f"precision must be auto, float32 or bfloat16, got {precision!r}")
    return named[precision]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware is made for bfloat16: CUDA since Ampere, AVX512-BF16, AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return _has("avx512_bf16") or _has("amx_bf16")


def prepared(module: nn.Module, dtype: torch.dtype, exact: tuple[str, ...] = ()) -> nn.Module:
    """A copy for inference whose linear layers and convolutions multiply in ``dtype``, their weights converted once.

    All else stays as it is: what the layers are given and what they give back is float32, and so are norms, softmax
    and sums. The copy is worked with, not trained or saved.

    Args:
        exact: names of children that multiply in float32 all the same.
    """
    module = copy.deepcopy(module).requires_grad_(False)
    for name in exact:
        setattr(module, name, _prepared(getattr(module, name), torch.float32))
    return _prepared(module, dtype, exact)


class Converted(nn.Module):
    """A layer that multiplies in another type than that of what it is given and gives back."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        """What the layer makes of ``x``."""
        return self.layer(x.to(self.dtype)).to(x.dtype)


class PackedLinear(nn.Module):
    """A linear layer in float32 whose weights lie as oneDNN wants them."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach()), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) -> (…, outputs)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def _prepared(module: nn.Module, dtype: torch.dtype, done: tuple[str, ...] = ()) -> nn.Module:
    if isinstance(module, CONVOLUTIONS):
        module = module.to(memory_format=torch.channels_last)
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)) and module.weight.dtype != dtype:
        return Converted(module, dtype)
    if isinstance(module, nn.Linear) and _packs(module.weight):
        return PackedLinear(module)
    for name, child in module.named_children():
        if name not in done:
            setattr(module, name, _prepared(child, dtype))
    return module


def _packs(weight: Tensor) -> bool:
    """Whether oneDNN is to multiply: with AVX-512, which MKL makes little of on processors that are not Intel's."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and weight.device.type == "cpu" and weight.dtype == torch.float32 and _has("avx512_f")


def _has(feature: str) -> bool:
    return bool(getattr(torch.cpu, "get_capabilities", dict)().get(feature))  # older torch cannot say
