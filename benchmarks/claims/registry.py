"""All claims, in the order in which they are run."""

from collections.abc import Sequence

from a_dmpo import DMPOAgainstDPO
from b_adaptive import AdaptiveDPO
from c_see import SEEDPO
from claim import Claim
from d_spin import SPINDiffusion
from e_ppd import PPDUnseen
from f_inversion import InversionDPO
from g_classics import Mixtures

__all__ = ["CLAIMS", "Claim"]

CLAIMS: Sequence[Claim] = (
    DMPOAgainstDPO(),
    AdaptiveDPO(),
    SEEDPO(),
    SPINDiffusion(),
    PPDUnseen(),
    InversionDPO(),
    Mixtures(),
)
