# SPDX-License-Identifier: Apache-2.0
"""Kernel alignment: agreement of the structure among tokens, instead of the tokens themselves."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from rekindle.core.precision import full_precision

_LEAST = 1e-6  # of a kernel's squared norm: tokens that are all alike have no structure, and a finite gradient


@full_precision
def kernel_alignment(student: Float[Tensor, "N M D"], teacher: Float[Tensor, "N M D"]) -> Float[Tensor, " N"]:
    """Centred kernel alignment of linear kernels: <H K_s H, H K_t H> / (|H K_s H| |H K_t H|), in [0, 1].

    PaKA (Yeo et al., arXiv:2509.05606), its alignment objective is 1 minus this; Kornblith et al., arXiv:1905.00414. It does not
    change when features are rotated or scaled as a whole.

    Args: tokens at the same M places; the teacher's without gradient.
    """
    kernels = []
    for tokens in (student, teacher.detach()):
        centred = tokens - tokens.mean(dim=1, keepdim=True)
        kernels.append(centred @ centred.transpose(1, 2))
    own, given = kernels
    norms = [k.square().sum(dim=(1, 2)).clamp_min(_LEAST).sqrt() for k in kernels]
    return (own * given).sum(dim=(1, 2)) / (norms[0] * norms[1])
