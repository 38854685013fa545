"""python -m tim_jax.plan --config=configs/imagenet256_xl.py --topology=v5p:4x4x8[,h100:4x8,…] [--json FILE]"""

from fractions import Fraction

from ml_collections import ConfigDict

from tim_jax.command_line import Parser, load_config, user_errors
from tim_jax.exit_codes import DONE, FAILED
from tim_jax.plan import collectives, report
from tim_jax.plan.bounds import bounds
from tim_jax.plan.compile import compile_step
from tim_jax.plan.memory import largest_batch
from tim_jax.plan.topologies import EXAMPLES, Topology, host_devices, topology
from tim_jax.training.sharding import batch_shards


def make_plan(config: ConfigDict, devices: Topology) -> report.Plan:
    """Compiles the step of a configuration and, if it does not fit, searches the largest batch that does."""
    step = compile_step(config, devices)
    found = collectives.read(step.text) if step.text else []
    least = bounds(step, devices, found) if step.text else None
    plan = report.Plan(devices, step, found, least, config.training.steps)
    if plan.fits:
        return plan

    def measure(rows: int) -> int:
        return compile_step(config, devices, rows).memory.total

    # Whole numbers of rows with r = t on every device, as long as the batch has them.
    unit = batch_shards(step.mesh) * config.optimizer.accumulation
    whole = unit * Fraction(config.times.share_equal).limit_denominator(100).denominator
    unit = whole if step.rows % whole == 0 else unit
    largest, _ = largest_batch(measure, step.rows, step.memory.total, devices.chip.memory, unit)
    return report.Plan(devices, step, found, least, config.training.steps, largest)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m tim_jax.plan", description="Plans a run for devices that are not there.")
    parser.add_argument("--config", required=True, help="a configuration, such as configs/imagenet256_xl.py")
    parser.add_argument("--topology", required=True, help=f"one or more of CHIP:SHAPE, such as {','.join(EXAMPLES)}")
    parser.add_argument("--json", help="file for the plans")
    args, overrides = parser.parse(argv)
    names = args.topology.split(",")
    with user_errors():
        config = load_config(args.config, overrides)
        host_devices(names)
        topologies = [topology(name) for name in names]
        plans = []
        for devices in topologies:
            plans.append(make_plan(config, devices))
            print(report.show(plans[-1]), flush=True)
            print()
    if len(plans) > 1:
        print(report.compare(plans))
    if args.json:
        report.write(args.json, plans)
    return DONE if all(plan.fits for plan in plans) else FAILED


if __name__ == "__main__":
    raise SystemExit(main())
