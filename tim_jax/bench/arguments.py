"""The arguments of all benchmarks, without an import that takes time.

What a benchmark is for is the docstring of its function here, which --help prints. Names that stand here are those of
the benchmarks' own tables.
"""

import argparse
import os
from collections.abc import Callable


def step(parser: argparse.ArgumentParser) -> None:
    """The cost of the derivative: a train step of flow matching beside three of transition models."""
    parser.add_argument("--networks", default="small,B/4", help="default: %(default)s")
    parser.add_argument(
        "--variants",
        default="flow_matching,tim_fused,tim_separate_jvp,tim_dde",
        help="also objectives, tim_teacher, mean_flow_teacher, {scm_distillation,ayf_eulerian,ctm,rcm}_adversary; "
        "ratios are to the first; default: %(default)s",
    )
    parser.add_argument(
        "--tokens", help="such as 64,256,1024, with fewer examples where there are more; default: each network's own"
    )
    parser.add_argument("--run-to", type=int, default=1024, help="most tokens that are timed; default: %(default)s")
    parser.add_argument("--depth", type=int, help="blocks, instead of each network's own number")
    parser.add_argument("--batch", type=int, help="examples, instead of each network's own number")
    parser.add_argument("--dtype", default="float32", help="compute type: float32, bfloat16")
    parser.add_argument("--remat", default="none", help="what is recomputed backwards: none, full, attention, dots")
    parser.add_argument("--repeats", type=int, default=10, help="default: %(default)s")


def sample(parser: argparse.ArgumentParser) -> None:
    """The cost of an image by steps, guidance and batch, and of the sampler over bare passes of the network."""
    parser.add_argument("--networks", default="small,B/4", help="default: %(default)s")
    parser.add_argument("--depth", type=int, help="blocks, instead of each network's own number")
    parser.add_argument("--steps", default="1,4,16", help="default: %(default)s")
    parser.add_argument("--guidance", default="1,1.5", help="scales, 1 for none; default: %(default)s")
    parser.add_argument("--steering", default="none", help="of none, flowchef, dps, resample; default: %(default)s")
    parser.add_argument("--estimate", help="that steers: prediction, the default, or end: of a jump to data")
    parser.add_argument("--iterations", type=int, help="of steering at each time; default: 1")
    parser.add_argument("--batch", default="1,16", help="images at once; default: %(default)s")
    parser.add_argument("--dtype", default="float32", help="compute type: float32, bfloat16")
    parser.add_argument("--repeats", type=int, default=10, help="default: %(default)s")


def compile(parser: argparse.ArgumentParser) -> None:
    """The time to trace and compile the step of a run, cold and from the persistent cache, by depth and buckets."""
    parser.add_argument("--networks", default="small,XL/2", help="of small, B/4, XL/2; default: %(default)s")
    parser.add_argument("--depths", default="7,28", help="blocks; default: %(default)s")
    parser.add_argument("--buckets", default="1,4", help="shapes of examples; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=1, help="default: %(default)s")


def attention(parser: argparse.ArgumentParser) -> None:
    """The cost of attention by number of tokens: of its output, with the tangent, and with gradient and tangent."""
    parser.add_argument("--implementations", help="of xla, blockwise, pallas; default: all that the device has")
    parser.add_argument("--modes", default="forward,jvp,jvp_grad", help="default: %(default)s")
    parser.add_argument("--tokens", default="256,512,1024,2048,4096,8192,16384", help="default: %(default)s")
    parser.add_argument("--keys", type=int, help="of cross-attention; default: as many as tokens")
    parser.add_argument("--masked", action="store_true", help="not every key may be attended to")
    parser.add_argument("--run-to", type=int, default=2048, help="most tokens that are timed; default: %(default)s")
    parser.add_argument("--batch", type=int, default=1, help="examples; default: %(default)s")
    parser.add_argument("--heads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--head-width", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--target", help="only compile, for a device of this topology, such as v5e:2x2 or h100:1x1")


def data(parser: argparse.ArgumentParser) -> None:
    """The speed of the input pipeline, against bare decoding and resizing of the same images."""
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads of both sides")
    parser.add_argument("--source", choices=("folder", "tar", "parquet"), default="folder", help="layout of the images")


def faults(parser: argparse.ArgumentParser) -> None:
    """Kills a run at random moments, compares it with an undisturbed one, and tells the work that each kill loses."""
    parser.add_argument("--kills", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default: %(default)s")


def flips(parser: argparse.ArgumentParser) -> None:
    """Flips single bits on one of several devices while a tiny network trains, and counts which flips are found."""
    parser.add_argument("--flips", type=int, default=200, help="of each kind; default: %(default)s")
    parser.add_argument(
        "--where", default="params,emas,opt_state,gradient,data,computation,broken", help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="of where and when; default: %(default)s")


def checks(parser: argparse.ArgumentParser) -> None:
    """What the checks for silent corruption cost a run, at its settings."""
    parser.add_argument("--config", default="digits", help="a configuration; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=20, help="default: %(default)s")


def endurance(parser: argparse.ArgumentParser) -> None:
    """Watches what a long run holds from its first steps to its last: memory, file descriptors, threads, processes."""
    parser.add_argument("--steps", type=int, default=50000, help="default: %(default)s")
    parser.add_argument(
        "--evaluations", type=int, default=200, help="and as many pictures and checkpoints; default: %(default)s"
    )
    parser.add_argument("--workers", type=int, default=0, help="reading processes; default: %(default)s")


ARGUMENTS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "step": step,
    "sample": sample,
    "compile": compile,
    "attention": attention,
    "data": data,
    "faults": faults,
    "flips": flips,
    "checks": checks,
    "endurance": endurance,
}
