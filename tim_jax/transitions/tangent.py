"""How dF/dt enters the target, for objectives that damp, normalise or differentiate it.

With the target's change and the sensitivity q = B/Ḃ of `target.py`,

    g  = s [base − F⁻ + w q (base' − SG_λ[dF/dt])],     F* = F⁻ + ρ clip(g) / (‖clip(g)‖ + c)

    w     the warm-up: 0 at the first step, `max_share` from step `warmup_steps` on (sCM, arXiv 2410.11081; Align Your
          Flow, arXiv 2506.14603, ends at 0.99); before, jumps learn the velocity at r = t
    s     1/(1 + q²) if `bounded`, which is cos²(t − r) for TrigFlow (sCM), else 1
    c     `normalise`, the normalisation (both papers); ‖g‖ is the root mean square of an example, or with `total` the
          root of the sum of its squares (SANA-Sprint, arXiv 2503.09641, whose g is σ_d times ours)
    clip  keeps every element within ± `clip` (FACM, arXiv 2507.03738)
    ρ     1 − (1 − u)^p, p = `relaxation`, u the share of the time domain that lies below t (FACM): near the data F* is
          F⁻, and so a step is short
    SG_λ  λ z + (1 − λ) sg z, with λ from 0 to 1 over `differentiate_steps` (Modular MeanFlow, arXiv 2508.17426)

Without any of these F* = base + q (base' − dF/dt), the transition target.
"""

import dataclasses

import jax
import jax.numpy as jnp

from tim_jax.transitions.jump import expand

UNUSED = {
    tuple(f"objective.tangent.{name}" for name in (
        "normalise", "total", "clip", "relaxation", "bounded", "warmup_steps", "warmup_share", "max_share",
        "differentiate_steps",
    )): (
        "no derivative is used (times.share_equal is 1 or objective.consistency 'semigroup')",
        lambda c: c.times.share_equal == 1 or c.objective.consistency == "semigroup",
    ),
    ("objective.tangent.total",): ("objective.tangent.normalise is 0", lambda c: not c.objective.tangent.normalise),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tangent:
    """Settings of the formula above. With `max_share` below 1 the network does not quite learn the flow map."""

    normalise: float = 0.0  # c of g/(‖g‖ + c), the change of F; 0: none
    total: bool = False  # ‖g‖ is the root of a sum of squares, not of their mean
    clip: float = 0.0  # elements of g are kept within ± this; 0: they are not
    relaxation: float = 0.0  # p of 1 − (1 − u)^p, which multiplies g, u being the share of the time domain; 0: none
    bounded: bool = False  # g over 1 + (B/Ḃ)²
    warmup_steps: int = 0  # over which dF/dt sets in; 0: none
    warmup_share: float = 0.0  # the same as a share of all training steps, in place of warmup_steps; 0: none
    max_share: float = 1.0  # of dF/dt, once it has set in
    differentiate_steps: int = 0  # over which dF/dt gets a gradient; 0: never, 1: from the second step on

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        for name in ("normalise", "clip", "relaxation", "warmup_steps", "differentiate_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.tangent.{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("warmup_share", "max_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"objective.tangent.{name} is {getattr(self, name)}; it must lie in [0, 1]")
        if self.warmup_share and self.warmup_steps:
            raise ValueError(
                f"objective.tangent.warmup_share is {self.warmup_share}; it must be 0 with "
                f"objective.tangent.warmup_steps {self.warmup_steps}"
            )
        if self.differentiate_steps and self._changes:
            raise ValueError(
                f"objective.tangent.differentiate_steps is {self.differentiate_steps}; it must be 0 with normalise, "
                "clip, relaxation, bounded, warmup_steps, warmup_share or max_share"
            )

    def following(self, steps: int) -> "Tangent":
        """Returns these settings for so many steps of training: with the steps of a warm-up that is a share of them."""
        if not self.warmup_share:
            return self
        return dataclasses.replace(self, warmup_steps=round(self.warmup_share * steps), warmup_share=0.0)

    @property
    def _changes(self) -> bool:
        warms_up = self.warmup_steps or self.warmup_share or self.max_share != 1
        return bool(warms_up or self.normalise or self.clip or self.relaxation or self.bounded)

    def mix_stop_gradient(self, dF_dt: jax.Array, step: jax.Array) -> jax.Array:
        """Returns SG_λ[dF/dt] (B, …), λ being that of the step."""
        constant = jax.lax.stop_gradient(dF_dt)
        if not self.differentiate_steps:
            return constant
        share = jnp.minimum(jnp.asarray(step, dF_dt.dtype) / self.differentiate_steps, 1)
        return share * dF_dt + (1 - share) * constant

    def target(
        self,
        base: jax.Array,
        change: jax.Array,
        q: jax.Array,
        F: jax.Array,
        step: jax.Array,
        off_diagonal: jax.Array,
        u: jax.Array,
    ) -> jax.Array:
        """Returns the target F* (B, …).

        Args:
            base: The target (B, …) at r = t.
            change: q (base' − SG_λ[dF/dt]) of shape (B, …).
            q: The sensitivity (B, 1, …).
            F: The network's prediction (B, …); it gets no gradient here.
            step: The training step, a scalar.
            off_diagonal: (B,) bool; the target is `base` where it is false.
            u: The share (B,) of the time domain that lies below t.
        """
        if not self._changes:
            return base + change
        assert not self.warmup_share, "`following` says how many steps these are"
        share = jnp.minimum(jnp.asarray(step, change.dtype) / self.warmup_steps, 1) if self.warmup_steps else 1.0
        change = self.max_share * share * change
        F = jax.lax.stop_gradient(F)
        g = base - F + change
        if self.bounded:
            g = g / (1 + q**2)
        if self.clip:
            g = jnp.clip(g, -self.clip, self.clip)
        if self.normalise:
            add = jnp.sum if self.total else jnp.mean
            norm = jnp.sqrt(add(g**2, axis=range(1, g.ndim), keepdims=True))
            g = g / (norm + self.normalise)
        if self.relaxation:
            g = expand(1 - (1 - u) ** self.relaxation, g) * g
        return jnp.where(expand(off_diagonal, base), F + g, base)
