"""python -m tim_jax.evaluate --workdir=DIR --steps=1,2,4,8,16,32,64,128 [--seeds=3 --out=DIR --export=FILE]

With several values of --operator, --steering, --weights, --sampler, --plan, --guidance or --guidance-interval it
measures all their combinations; with --evaluations in place of --steps, samplers are compared by what they cost.
--metrics=bits_per_dim is the likelihood of data, for which nothing is drawn.
"""

import argparse

from tim_jax.config import keys
from tim_jax.config.command_line import Parser, failures, intervals, real_numbers, user_errors, whole_numbers, words

STEPS, SEEDS = "1,2,4,8,16,32,64,128", 3


def parser() -> Parser:
    """The arguments."""
    made = Parser(
        prog="python -m tim_jax.evaluate",
        description="Measures a trained run at several numbers of steps, as one table.",
        unread=keys.unread("sampling.batch_size"),
    )
    made.add_argument("--workdir", required=True, help="the run's folder")
    made.add_argument("--steps", help=f"numbers of steps, such as 1,4,32; default: {STEPS}")
    made.add_argument("--evaluations", help="in place of --steps: numbers of network evaluations per image, such as "
                      "1,4,32; each sampler takes the steps that they allow")  # fmt: skip
    made.add_argument(
        "--seeds", type=int, help=f"number of seeds of the noise, for mean and standard deviation; default: {SEEDS}"
    )
    made.add_argument("--count", type=int, help="samples per number of steps and seed; default: evaluation.num_samples")
    made.add_argument("--operator", help="measurements of held-out images, which samples are steered to restore, "
                      "such as box_inpainting:0.5,super_resolution:4; default: sampling.steering.operator")  # fmt: skip
    made.add_argument(
        "--steering", help="methods of steering: flowchef, dps, resample; default: sampling.steering.method"
    )
    made.add_argument("--weights", help="names of EMAs, or online, such as slow,fast; default: sampling.ema")
    made.add_argument("--sampler", help="names of samplers, such as flow_map,euler; default: sampling.sampler")
    made.add_argument("--plan", help="sampler (its own plan), learned, or both as sampler,learned; default: "
                      "sampling.plan")  # fmt: skip
    made.add_argument("--guidance", help="guidance scales, such as 1,1.5,2; default: sampling.guidance")
    made.add_argument("--guidance-interval", help="intervals in which guidance acts, as fractions of the largest time, "
                      "such as 0:1,0.1:0.8; default: sampling.guidance_low and _high")  # fmt: skip
    made.add_argument("--metrics", help="names of metrics, such as frechet,bits_per_dim; default: evaluation.metrics")
    made.add_argument(
        "--nearest", type=int, help="number of samples shown beside their nearest training image; default: 24"
    )
    made.add_argument("--export", help="only write the samples of one step count and of seed 0 to this npz file, "
                        "as published evaluations read them")  # fmt: skip
    made.add_argument("--out", help="folder for table and pictures; default: the run's")
    return made


def main(argv: list[str] | None = None) -> None:
    """The command; argv: its arguments, by default those of the process."""
    execute(*parser().parse(argv))


def execute(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    with user_errors():
        if args.steps is not None and args.evaluations is not None:
            raise ValueError(f"--steps is {args.steps}; it must be left out with --evaluations, which chooses them")
        if args.evaluations is not None:
            args.evaluations, args.steps = whole_numbers("evaluations", args.evaluations, least=1), []
        else:
            text = STEPS if args.steps is None else args.steps
            args.evaluations, args.steps = (), whole_numbers("steps", text, least=1)
        for name in ("operator", "steering", "weights", "sampler", "plan", "metrics"):
            setattr(args, name, words(name, text) if (text := getattr(args, name)) is not None else ())
        args.guidance = real_numbers("guidance", args.guidance, least=0) if args.guidance is not None else ()
        texts = args.guidance_interval
        args.guidance_interval = intervals("guidance-interval", texts) if texts is not None else ()
        args.seeds = SEEDS if args.seeds is None else args.seeds

    from tim_jax.runs import sweep
    from tim_jax.runs.any_step import open_any_step
    from tim_jax.runs.evaluation_arguments import EvaluationArguments
    from tim_jax.system import cluster, devices
    from tim_jax.training.preemption import Stop

    with user_errors():
        cluster.join()  # before Stop: it takes SIGTERM for itself
    with Stop():
        with user_errors():
            job = open_any_step(EvaluationArguments(**vars(args), given=given), overrides)
        devices.announce()
        with failures(ValueError, OSError):
            if args.export is not None:
                job.export()
            elif len(job.ways) > 1:
                sweep.measure_all(job)
            else:
                if job.likelihood:
                    job.bits_per_dimension()
                if job.measurement:
                    job.table()


if __name__ == "__main__":
    main()
