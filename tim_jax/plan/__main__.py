"""python -m tim_jax.plan --config=configs/imagenet256_xl.py --topology=v5p:4x4x8[,h100:4x8,…] [--json FILE]

Of an objective that learns from a teacher, --teacher=CONFIG says what it is, in place of its weights.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from tim_jax.config.build import build
from tim_jax.config.command_line import Parser, load_config, user_errors
from tim_jax.plan import collectives, report
from tim_jax.plan.bounds import bounds
from tim_jax.plan.compile import compile_step
from tim_jax.plan.memory import largest_batch
from tim_jax.runs.teachers import Found, find, stand_ins
from tim_jax.system.exit_codes import DONE, FAILED
from tim_jax.system.topologies import EXAMPLES, Topology, host_devices, topology


def make_plan(config: ConfigDict, devices: Topology, models: Mapping[str, Found] = {}) -> report.Plan:
    """Compiles the step of a configuration and, if it does not fit, searches the largest batch that does.

    models: those that it learns from.
    """
    step = compile_step(config, devices, models=models)
    found = collectives.read(step.text) if step.text else []
    least = bounds(step, devices, found) if step.text else None
    plan = report.Plan(devices, step, found, least, config.training.steps)
    if plan.fits:
        return plan

    def measure(rows: int) -> int:
        return compile_step(config, devices, rows, models).memory.total

    largest, _ = largest_batch(measure, step.rows, step.memory.total, devices.chip.memory, step.unit)
    return report.Plan(devices, step, found, least, config.training.steps, largest)


def models_of(config: ConfigDict, teacher: str | None, devices: Topology) -> dict[str, Found]:
    """What a configuration learns from: the configuration called `teacher`, or what its own keys name.

    Raises ValueError if it learns from a teacher and there is neither, or from none and there is one.
    """
    run = build(config, devices.devices)
    if teacher is not None:
        return stand_ins(run, load_config(teacher, {}), f"--teacher is {teacher!r}")
    if run.trainer.step.objective.teachers and not run.config.teacher.checkpoint:
        raise ValueError(
            f"--teacher: missing; objective.name {run.config.objective.name!r} learns from a teacher and "
            "teacher.checkpoint is '': give its configuration, such as --teacher=imagenet256_xl"
        )
    return find(run)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m tim_jax.plan", description="Plans a run for devices that are not there.")
    parser.add_argument("--config", required=True, help="a configuration, such as configs/imagenet256_xl.py")
    parser.add_argument("--topology", required=True, help=f"one or more of CHIP:SHAPE, such as {','.join(EXAMPLES)}")
    parser.add_argument(
        "--teacher", help="configuration of the model that is learnt from; default: of teacher.checkpoint"
    )
    parser.add_argument("--json", help="file for the plans")
    args, overrides = parser.parse(argv)
    names = args.topology.split(",")
    with user_errors():
        config = load_config(args.config, overrides)
        host_devices(names)
        topologies = [topology(name) for name in names]
        models, plans = models_of(config, args.teacher, topologies[0]), []
        for devices in topologies:
            plans.append(make_plan(config, devices, models))
            print(report.show(plans[-1]), flush=True)
            print()
    if len(plans) > 1:
        print(report.compare(plans))
    if args.json:
        report.write(args.json, plans)
    return DONE if all(plan.fits for plan in plans) else FAILED


if __name__ == "__main__":
    raise SystemExit(main())
