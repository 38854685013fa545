"""python -m tim_jax.sample --workdir=DIR --steps=1,4,32 [--labels=… --guidance=… --seed=… --out=…]

Of a run conditioned on text: --prompt="…", or --prompts=FILE (.txt, .jsonl, .json, or a folder of .txt files), with
--per-prompt=N images of each and --layout=geneval, dpg or mjhq for the programs that score them.

From images in place of noise: --from=FILE,… --labels=… with --start=TIME noises them to that time and samples down from
there; without, they are brought to noise and back, with --strength=SHARE part of the way up, and up by the label or
prompt --source=…, which edits them. --interpolate=N draws N images on the way between neighbours.

Samples are steered towards a measurement of images by --operator=super_resolution:4 and others, with --from=IMAGE that
is measured or --target=FILE that was; with --mask=FILE they are drawn anew where it is white. --operator=classifier
steers towards the labels. The keys below sampling.steering say how.

--search=best_of:8 --reward=NAME looks for samples of a high reward, with eight times the evaluations.

A run with objective.coupling restores images that it degrades first: --images=FOLDER, by default the held-out part.
"""

import argparse

from tim_jax.config import keys
from tim_jax.config.command_line import Parser, failures, user_errors, whole_numbers
from tim_jax.runs.outputs.settings import COUNT, LAYOUTS, SampleSettings


def parser() -> Parser:
    """The arguments."""
    made = Parser(
        prog="python -m tim_jax.sample",
        description="Samples from a trained run at several step counts.",
        unread=keys.BY_DRAWING,
    )
    made.add_argument("--workdir", required=True, help="the run's folder")
    made.add_argument("--steps", default="1,2,4,8", help="numbers of steps, such as 1,4,32; default: %(default)s")
    made.add_argument(
        "--labels", default="", help="classes by name or number, such as dog,3; default: all classes in turn"
    )
    made.add_argument("--count", type=int, help=f"images per step count where no labels are given; default: {COUNT}")
    made.add_argument("--prompt", help="for a run conditioned on text: what the images are to show")
    made.add_argument("--prompts", help="a file of prompts: .txt, .jsonl or .json; or a folder of .txt files")
    made.add_argument("--per-prompt", type=int, help="images of each prompt; default: 1, or as the layout asks")
    made.add_argument("--layout", choices=LAYOUTS, default="plain", help="layout of the files; default: %(default)s")
    made.add_argument("--size", default="", help="height x width of images, such as 64x48; default: the run's")
    made.add_argument("--guidance", type=float, help="guidance scale, 1 for none; default: sampling.guidance")
    made.add_argument("--seed", type=int, default=0, help="seed of the noise; default: %(default)s")
    made.add_argument("--from", dest="images", help="image files to start from in place of noise, such as a.png,b.png")
    made.add_argument("--images", dest="restored", help="folder of images, or files, that a run with "
                      "objective.coupling restores; default: the held-out part")  # fmt: skip
    made.add_argument(
        "--start", type=float, help="time that the images of --from are noised to; default: brought up by the sampler"
    )
    made.add_argument("--strength", type=float, help="how far up the sampler brings the images of --from, above 0 and "
                      "at most 1; default: 1")  # fmt: skip
    made.add_argument(
        "--source",
        help="labels, or the prompt, that the images of --from are brought up by; default: those of the samples",
    )
    made.add_argument("--operator", help="what samples are steered towards: a measurement of --from, such as "
                      "super_resolution:4, or a reward")  # fmt: skip
    made.add_argument("--mask", help="image file, white where the images of --from are drawn anew")
    made.add_argument("--target", help="image files of what was measured, in place of --from; or the label that a "
                      "reward asks for, or the image that image_similarity does")  # fmt: skip
    made.add_argument("--interpolate", type=int, help="number of images on the way from each to the next")
    made.add_argument(
        "--search",
        help="best_of:N, starts:N or budget_forcing:N: searches for a high reward with N times the evaluations",
    )
    made.add_argument("--reward", help="what is searched for: brightness, classifier, similarity, "
                      "image_similarity, or a plugin's")  # fmt: skip
    made.add_argument("--classifier", default="", help="file of a reward's classifier, as python -m tim_jax.classify "
                      "writes it; default: objective.reward.classifier")  # fmt: skip
    made.add_argument("--radius", type=float, help="for starts: how far the next start may be; default: 0.5")
    made.add_argument("--out", help="folder to write to; default: WORKDIR/sampled, or one in it for another layout")
    return made


def main(argv: list[str] | None = None) -> None:
    """The command; argv: its arguments, by default those of the process."""
    execute(*parser().parse(argv))


def execute(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    with user_errors():
        args.steps = whole_numbers("steps", args.steps, least=1)
        settings = SampleSettings(**vars(args))
        settings.check()

    import jax

    from tim_jax.runs.outputs.job import open_job
    from tim_jax.system import cluster, devices
    from tim_jax.training.preemption import Stop

    with user_errors():
        cluster.join()  # before Stop: it takes SIGTERM for itself
    with Stop():
        with user_errors():
            job = open_job(settings, overrides)
        devices.announce()
        with failures(OSError):
            written = job.run()
    if jax.process_index() == 0:
        print(written)


if __name__ == "__main__":
    main()
