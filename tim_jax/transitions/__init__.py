"""The mathematics of transition models. A network enters as a callable; nothing here knows how it is made."""

from tim_jax.transitions.sampling.grids import GRIDS
from tim_jax.transitions.sampling.plans import SAMPLERS
from tim_jax.transitions.transports import cosine, edm, ot_fm, trigflow, ve, vp

TRANSPORTS = {"ot_fm": ot_fm, "trigflow": trigflow, "cosine": cosine, "vp": vp, "ve": ve, "edm": edm}

__all__ = ["GRIDS", "SAMPLERS", "TRANSPORTS"]
