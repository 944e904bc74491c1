"""Derivatives that owe nothing to autograd. Shape suffixes: K candidates of a prompt; B prompts."""

from collections.abc import Callable

import torch
from torch import Tensor


def central_differences(function: Callable[[Tensor], Tensor], at_KB: Tensor, *, step: float = 1e-5) -> Tensor:
    """Slope of every prompt's loss by its own numbers, from the loss alone.

    Where a loss depends on other prompts, autograd's slopes of the sum are other ones.

    Args:
        function: from numbers, (K, B), to one loss per prompt, (B,).
        at_KB: where; computed in float64.
        step: how far it moves to either side; the error is about its square times the third derivative.

    Returns:
        One slope per number, (K, B), float64.

    Example:
        >>> central_differences(lambda x_KB: (x_KB**2).sum(0), torch.tensor([[3.0], [-1.0]]))
        tensor([[ 6.0000],
                [-2.0000]], dtype=torch.float64)
    """
    at_KB = at_KB.detach().double()
    slope_KB = torch.zeros_like(at_KB)
    for k, b in torch.cartesian_prod(*map(torch.arange, at_KB.shape)).tolist():
        move_KB = torch.zeros_like(at_KB)
        move_KB[k, b] = step
        with torch.no_grad():
            slope_KB[k, b] = (function(at_KB + move_KB)[b] - function(at_KB - move_KB)[b]) / (2 * step)
    return slope_KB


def autograd_slopes(function: Callable[[Tensor], Tensor], at_KB: Tensor) -> Tensor:
    """The same slopes as autograd finds them, of the sum over prompts; (K, B), float64."""
    at_KB = at_KB.detach().double().requires_grad_()
    (slope_KB,) = torch.autograd.grad(function(at_KB).sum(), at_KB)
    return slope_KB


def assert_slopes(
    function: Callable[[Tensor], Tensor], at_KB: Tensor, *, step: float = 1e-5, tolerance: float = 1e-6
) -> None:
    """Holds autograd against central differences.

    Args:
        function: as in ``central_differences``.
        at_KB: where.
        step: as in ``central_differences``.
        tolerance: allowed difference, as a share of the largest slope.

    Raises:
        AssertionError: they differ.
    """
    found_KB = autograd_slopes(function, at_KB)
    expected_KB = central_differences(function, at_KB, step=step)
    scale = float(expected_KB.abs().max())
    torch.testing.assert_close(found_KB, expected_KB, rtol=0, atol=tolerance * max(scale, 1e-30))
