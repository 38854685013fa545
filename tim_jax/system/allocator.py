"""The memory that programs on a CPU compute in, which the C library keeps from one call to the next."""

import ctypes
import os
import platform
import sys

from tim_jax.system.accelerators import GPU, TPU, is_there

# What glibc's mallopt sets, by the environment variable that a user sets in its place: (number in malloc.h, value).
# Of all arenas only the first, which is then the only one, can hold a large piece.
PARAMETERS = {
    "MALLOC_ARENA_MAX": (-8, 1),
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**31 - 1),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
}


def keep_freed() -> bool:
    """Lets glibc keep freed memory, up to 2 GiB at the end of its heap, for whatever asks for memory next.

    XLA asks for the temporaries of a program in every call. By default the system takes pieces that large back, and in
    every step gives each page anew, cleared, when the step first writes to it.

    Returns:
        Whether it does: where JAX is to compute on a CPU and has not been imported, whose threads would have arenas of
        their own by then; with glibc; and unless the environment has one of PARAMETERS.
    """
    on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not (is_there(GPU) or is_there(TPU))
    if "jax" in sys.modules or not on_cpu or any(name in os.environ for name in PARAMETERS):
        return False
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(number, value) == 1 for number, value in PARAMETERS.values()])
