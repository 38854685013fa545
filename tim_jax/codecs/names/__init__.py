"""The names and layouts of published weights, a table for each network: adding one is a file and a line here."""

from collections.abc import Mapping, Sequence

from tim_jax.codecs.names import ddt, dit, jit, lightningdit, tim
from tim_jax.codecs.names.layouts import Row

# By the name of the network, as `model.network` has it. A network has some of the rows of its table.
NAMES: Mapping[str, Sequence[Row]] = {
    "tim": tim.NAMES,
    "dit": dit.NAMES,
    "sit": dit.NAMES,
    "lightningdit": lightningdit.NAMES,
    "jit": jit.NAMES,
    "ddt": ddt.DDT,
    "ditdh": ddt.DITDH,
}

__all__ = ["NAMES"]
