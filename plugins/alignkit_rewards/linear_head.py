"""The head that the aesthetic predictor and ImageReward have in common. Suffixes: N images; D width."""

from collections.abc import Mapping

from torch import Tensor, nn

WIDTHS = (1024, 128, 64, 16, 1)
# of the authors' sequence, whose other entries are dropout; there are no activations
LAYERS = (0, 2, 4, 6, 7)


def linear_head(
    weights: Mapping[str, Tensor], width: int, prefix: str, named: str, owner: str
) -> nn.Sequential:
    """Five linear layers, width-1024-128-64-16-1, frozen.

    Args:
        weights: the checkpoint.
        width: of what it reads.
        prefix: of the names of its weights.
        named: the checkpoint, for messages.
        owner: class that reads it, for messages.

    Raises:
        ValueError: weights are missing, or of another shape.
    """
    head = nn.Sequential(*(nn.Linear(*ends) for ends in zip((width, *WIDTHS[:-1]), WIDTHS, strict=True)))
    given = {}
    for place, (name, weight) in enumerate(head.state_dict().items()):
        found = f"{prefix}layers.{LAYERS[place // 2]}.{name.partition('.')[2]}"
        shape = tuple(weights[found].shape) if found in weights else "nothing"
        if shape != tuple(weight.shape):
            raise ValueError(
                f"{owner}: {named} must have {found} of shape {tuple(weight.shape)}, has {shape}: the head "
                f"is {'-'.join(map(str, (width, *WIDTHS)))}, without activations"
            )
        given[name] = weights[found].float()
    head.load_state_dict(given)
    return head.eval().requires_grad_(False)
