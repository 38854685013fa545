"""python -m tim_jax.plan --config=configs/imagenet256_xl.py --topology=v5p:4x4x8[,h100:4x8,…] [--json FILE]

For an objective that learns from a teacher, --teacher=CONFIG gives its configuration in place of a checkpoint.
"""

from collections.abc import Mapping
from typing import cast

from ml_collections import ConfigDict

from tim_jax.config.build import build
from tim_jax.config.command_line import Parser, load_config, user_errors
from tim_jax.plan import collectives, report
from tim_jax.plan.bounds import bounds
from tim_jax.plan.compile import compile_step
from tim_jax.plan.memory import largest_batch
from tim_jax.runs.teachers import TeacherSource, find_teachers, planned_teachers
from tim_jax.system import paths
from tim_jax.system.exit_codes import DONE, FAILED
from tim_jax.system.topologies import EXAMPLES, Topology, host_devices, topology
from tim_jax.transitions.objective import Objective


def make_plan(config: ConfigDict, devices: Topology, models: Mapping[str, TeacherSource] = {}) -> report.PlanReport:
    """Compiles the step of a configuration and, if it does not fit, searches for the largest batch that does.

    Args:
        config: the configuration.
        devices: what the step is compiled for.
        models: the models that it learns from (see `models_of`).
    """
    step = compile_step(config, devices, models=models)
    found = collectives.read(step.text, devices.islands) if step.text else []
    best = bounds(step, devices, found) if step.text else None
    plan = report.PlanReport(devices, step, found, best, config.training.steps)
    if plan.fits:
        return plan

    def measure(batch_size: int) -> int:
        return compile_step(config, devices, batch_size, models).memory.total

    largest, _ = largest_batch(measure, step.batch_size, step.memory.total, devices.chip.memory, step.unit)
    return report.PlanReport(devices, step, found, best, config.training.steps, largest)


def models_of(config: ConfigDict, teacher: str | None, devices: Topology) -> dict[str, TeacherSource]:
    """Finds the models that a configuration learns from.

    Args:
        config: the configuration.
        teacher: name of the teacher's configuration, None for the checkpoint that `config` names.
        devices: what the step will be compiled for.

    Returns:
        {name: model}, empty if it learns from none.

    Raises:
        ValueError: if it learns from a teacher and there is neither, or from none and there is one.
    """
    run = build(config, devices.devices)
    if teacher is not None:
        try:
            config = load_config(teacher, {})
        except ValueError as error:
            raise ValueError(str(error).replace("--config=", "--teacher=", 1)) from None
        return planned_teachers(run, config, f"--teacher is {teacher!r}")
    objective = cast(Objective, run.trainer.step.objective)
    if objective.teachers and not run.config.teacher.checkpoint:
        raise ValueError(
            f"--teacher: missing; objective.name {run.config.objective.name!r} learns from a teacher and "
            "teacher.checkpoint is '': give its configuration, such as --teacher=imagenet256_xl"
        )
    return find_teachers(run)


def main(argv: list[str] | None = None) -> int:
    """Plans a run; returns the exit code, FAILED if it does not fit somewhere."""
    parser = Parser(prog="python -m tim_jax.plan", description="Plans a run for devices that are not there.")
    parser.add_argument("--config", required=True, help="a configuration, such as configs/imagenet256_xl.py")
    parser.add_argument("--topology", required=True, help=f"one or more, such as {','.join(EXAMPLES)}")
    parser.add_argument(
        "--teacher", help="configuration of the model that is learnt from; default: of teacher.checkpoint"
    )
    parser.add_argument("--json", help="file for the plans")
    args, overrides = parser.parse(argv)
    names = args.topology.split(",")
    with user_errors():
        config = load_config(args.config, overrides)
        file = paths.new_file(args.json, "--json") if args.json is not None else None
        host_devices(names)
        topologies = [topology(name) for name in names]
        models, plans = models_of(config, args.teacher, topologies[0]), []
        for devices in topologies:
            plans.append(make_plan(config, devices, models))
            print(report.show(plans[-1]), flush=True)
            print()
    if len(plans) > 1:
        print(report.compare(plans))
    if file:
        report.write(file, plans)
    return DONE if all(plan.fits for plan in plans) else FAILED


if __name__ == "__main__":
    raise SystemExit(main())
