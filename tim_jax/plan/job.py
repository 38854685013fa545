"""The job of python -m tim_jax.plan: plans of a configuration on devices, one after another."""

import dataclasses
from collections.abc import Mapping
from typing import cast

from ml_collections import ConfigDict

from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.plan import collectives, report
from tim_jax.plan.bounds import bounds
from tim_jax.plan.compile import compile_step
from tim_jax.plan.measured import Measured
from tim_jax.plan.memory import largest_batch
from tim_jax.runs.teachers import TeacherSource, find_teachers, planned_teachers, starts_from_teacher
from tim_jax.system.topologies import Topology
from tim_jax.transitions.objective import Objective


def make_plan(
    config: ConfigDict,
    devices: Topology,
    models: Mapping[str, TeacherSource] = {},
    measured: Measured | None = None,
) -> report.PlanReport:
    """Compiles the step of a configuration and, if it does not fit, searches for the largest batch that does.

    Args:
        config: the configuration.
        devices: what the step is compiled for.
        models: the models that it learns from (see `models_of`).
        measured: what was measured on such devices.
    """
    step = compile_step(config, devices, models=models)
    found = collectives.read(step.text, devices.islands) if step.text else []
    best = bounds(step, devices, found) if step.text else None
    plan = report.PlanReport(devices, step, found, best, config.training.steps, measured=measured)
    if plan.fits:
        return plan

    def measure(batch_size: int) -> int:
        return compile_step(config, devices, batch_size, models).memory.total

    largest, _ = largest_batch(measure, step.batch_size, step.memory.total, devices.chip.memory, step.unit)
    return dataclasses.replace(plan, largest=largest)


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
    if objective.teachers and not run.config.teacher.checkpoint and not starts_from_teacher(run):
        raise ValueError(
            f"--teacher: missing; objective.name {run.config.objective.name!r} learns from a teacher and "
            "teacher.checkpoint is '': give its configuration, such as --teacher=imagenet256_xl"
        )
    return find_teachers(run)
