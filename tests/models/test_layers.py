"""The building blocks: values as written, gradients as autograd would have them."""

import pytest
import torch

from worldmodel.models.layers import gated_activation


@pytest.mark.parametrize(
    ("shape", "dim", "condition"),
    [
        ((3, 5, 8), -1, None),
        ((2, 6, 3, 4), 1, None),
        ((3, 5, 8), -1, (3, 5, 8)),
        ((2, 4, 5, 8), -1, (2, 1, 1, 8)),
    ],
)
@pytest.mark.slow
def test_a_gate_has_the_gradient_of_its_definition(shape, dim, condition):
    torch.manual_seed(0)
    given = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in (shape, condition) if size]
    a, b = (given[0] if condition is None else given[0] + given[1]).chunk(2, dim)

    def gate(x, also=None):
        return gated_activation(x, dim, also)

    assert torch.allclose(gate(*given), a.tanh() * b.sigmoid())
    assert torch.autograd.gradcheck(gate, given)


def test_a_gate_is_compiled_in_one_piece():
    x, condition = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 1, 8)
    compiled = torch.compile(gated_activation, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, -1, condition), gated_activation(x, -1, condition))
