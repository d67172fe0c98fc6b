"""Two people in one picture: does each look like their own reference, or do they mix?

People of the picture are matched to the references by the assignment with the greatest sum of similarities (Kuhn's, as
`scipy` has it). Of two matched pairs the worse one counts, as FastComposer reports it (arXiv 2305.10431; it matches
greedily, the best pair first), and a reference that nobody is matched to counts 0. The assignment chooses what looks
best, so even strangers come out a little above 0: read every number beside the prior's.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment


@dataclass(frozen=True)
class Mixing:
    """What one picture of several people scores.

    `minimum_identity`: similarity of the worst matched pair, at least 0, and 0 where fewer people than references are
    found.
    `separation`: a matched person's similarity to the right reference minus the mean of that to the wrong ones, mean
    over the references that have a person; `None` where nobody is found, or there is one reference only.
    """

    minimum_identity: float
    separation: float | None


def subject_mixing(people_PD: Float[np.ndarray, "P D"], references_SD: Float[np.ndarray, "S D"]) -> Mixing:
    """Match the picture's people to the references (unit vectors).

    ValueError without a reference.
    """
    count = len(references_SD)
    if not count:
        raise ValueError("there is nobody to look for: give at least one reference.")
    if not len(people_PD):
        return Mixing(0.0, None)
    similarity_SP = references_SD @ people_PD.T
    matched_S, person_S = linear_sum_assignment(similarity_SP, maximize=True)
    own_S = similarity_SP[matched_S, person_S]
    minimum = max(0.0, float(own_S.min())) if len(own_S) == count else 0.0
    if count == 1:
        return Mixing(minimum, None)
    wrong_S = (similarity_SP[:, person_S].sum(axis=0) - own_S) / (count - 1)
    return Mixing(minimum, float((own_S - wrong_S).mean()))
