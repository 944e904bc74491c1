"""Math of DDIM inversion and of Inversion-DPO. Pure functions of tensors.

A level is a value of alpha-bar, the squared share of the clean latent. Shape suffixes: T steps of the
schedule; K candidates of a prompt; M points of a path; B prompts.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from alignkit.functional import ddim_move

Spacing = Literal["leading", "trailing"]
# noise estimate of a latent, given the step that the network is told and the level that the latent is at
Noise = Callable[[Tensor, int, float], Tensor]


class Transition(NamedTuple):
    """One step of an inversion.

    Args:
        step: what the network is told, the step of the schedule that it arrives at.
        level_from: where it starts.
        level_to: where it arrives, at a level that is not higher.
    """

    step: int
    level_from: float
    level_to: float


def inversion_grid(
    alpha_bar_T: Tensor,
    *,
    num_steps: int,
    spacing: Spacing = "leading",
    offset: int = 0,
    clean_level: float | None = None,
) -> tuple[Transition, ...]:
    """Transitions of a DDIM inversion, rising in noise: those of diffusers' ``DDIMInverseScheduler``.

    With the gap ``D = T // num_steps`` a leading grid has the steps ``i D + offset`` and a trailing one
    ``(i + 1) D - 1``. A transition leads from the level of step ``t - D`` to that of ``t``, and the network
    is told ``t``.

    Args:
        alpha_bar_T: levels of the schedule, falling.
        num_steps: number of transitions, from 1 to T.
        spacing: "leading" or "trailing"; the latter only where ``num_steps`` divides T, since else the gaps
            are not D. "linspace" is refused for the same reason.
        offset: added to the steps of a leading grid; ``steps_offset`` in diffusers.
        clean_level: level before the first step; 1 is ``set_alpha_to_one`` in diffusers, None the level of
            step 0.

    Raises:
        ValueError: the grid does not exist, or its last level is 0.
    """
    total = len(alpha_bar_T)
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing must be one of {', '.join(get_args(Spacing))}, got {spacing!r}")
    if not 1 <= num_steps <= total:
        raise ValueError(f"num_steps must be from 1 to {total}, the schedule's length, got {num_steps}")
    if spacing == "trailing" and total % num_steps:
        raise ValueError(
            f"num_steps must divide {total}, the schedule's length, where spacing is 'trailing', "
            f"got {num_steps}"
        )
    gap = total // num_steps
    if not 0 <= offset < total - (num_steps - 1) * gap:
        raise ValueError(
            f"offset must be below {total - (num_steps - 1) * gap} with {num_steps} steps, and not below 0, "
            f"got {offset}"
        )
    first = offset if spacing == "leading" else gap - 1
    steps = range(first, first + num_steps * gap, gap)
    level_T = alpha_bar_T.double().tolist()
    if level_T[steps[-1]] <= 0:
        raise ValueError(
            f"spacing must be 'leading' with a schedule whose last step, {steps[-1]}, holds nothing of the "
            f"picture, got {spacing!r}"
        )
    before = level_T[0] if clean_level is None else clean_level
    return tuple(Transition(t, level_T[t - gap] if t >= gap else before, level_T[t]) for t in steps)


def invert(noise: Noise, x: Tensor, grid: Sequence[Transition]) -> Tensor:
    """Carries a latent towards noise along the deterministic DDIM path that would have led to it.

    The noise estimate of a transition is taken at its start, for the step of its end: the convention of
    diffusers' ``DDIMInverseScheduler`` and of the released code.

    Args:
        noise: the network's noise estimate, guidance included.
        x: latents at the grid's first level.
        grid: where to go.

    Returns:
        The latents after every transition, (P, ...).
    """
    path = []
    for step, level_from, level_to in grid:
        x = ddim_move(x, noise(x, step, level_from), alpha_bar_from=level_from, alpha_bar_to=level_to)
        path.append(x)
    return torch.stack(path)


def sample(noise: Noise, x: Tensor, grid: Sequence[Transition]) -> Tensor:
    """DDIM sampling from the grid's last level back to its first: what ``invert`` undoes, to first order."""
    for step, level_from, level_to in reversed(grid):
        x = ddim_move(x, noise(x, step, level_to), alpha_bar_from=level_to, alpha_bar_to=level_from)
    return x


def round_trip_error(x: Tensor, back: Tensor) -> Tensor:
    """Root of the mean squared difference, as a share of the spread of ``x``; a scalar."""
    return (back - x).square().mean().sqrt() / x.std()


def guided(conditional: Tensor, unconditional: Tensor, *, guidance: float) -> Tensor:
    """Classifier-free guidance: 1 is the conditional prediction, 0 the unconditional one."""
    return unconditional + guidance * (conditional - unconditional)


def noise_from_v(v: Tensor, x: Tensor, *, alpha_bar: Tensor | float) -> Tensor:
    """Noise that a velocity means for a latent at a level: ``sqrt(ab) v + sqrt(1 - ab) x``."""
    return alpha_bar**0.5 * v + (1 - alpha_bar) ** 0.5 * x


def anchored_target(x_t: Tensor, x_0: Tensor, *, alpha_bar: Tensor | float) -> Tensor:
    """The noise that the forward process would need to lead from ``x_0`` to ``x_t``.

    At the points of an inverted path it takes the place of the drawn noise in Diffusion-DPO's loss. Derived
    here; InPO's released code has the same target
    (https://github.com/JaydenLyh/InPO/blob/a9cfc4d/train.py).

    Args:
        x_t: latent at a level.
        x_0: clean latent.
        alpha_bar: that level, in [0, 1); broadcasts with the latents.
    """
    return (x_t - alpha_bar**0.5 * x_0) / (1 - alpha_bar) ** 0.5


def deviation_weight(alpha_bar: Tensor) -> Tensor:
    """Weight of a squared difference of predicted noises: ``1 / (2 ab)``.

    It is ``(1 - ab) / (2 (1 - ab) ab)``, the weight of the released code, ``train_ddim.py`` of
    https://github.com/MIGHTYEZ/Inversion-DPO at 3e2af58: a difference of predicted clean latents under a
    Gaussian of variance ``1 - ab``. For velocities, whose differences are larger by ``1 / sqrt(ab)``, it is
    1/2 at every level.
    """
    return 0.5 / alpha_bar


def weighted_mean(error_KMB: Tensor, weight_MB: Tensor) -> Tensor:
    """Mean over the M points of a path of weighted errors, (K, B)."""
    return (weight_MB * error_KMB).mean(1)
