"""Every refusal that a configuration can cause: one line, "KEY is VALUE; it must …", with a key that can be typed.

All cases are provoked once. A scan of the sources finds the places that refuse; those that no case reaches are listed
with the reason.
"""

import ast
import functools
import pathlib
import re

import jax
import pytest
from etils import epath

import tim_jax
from tests.helpers.refused import GUIDED, JUDGED, NOT_PROVOKED, OF_OBJECTIVES, RESTORE, SLICED, TAUGHT
from tests.helpers.workdirs import TINY, one_device, told, workdir
from tim_jax import train
from tim_jax.config import loading
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.config.keys import flatten
from tim_jax.config.sections import SECTIONS
from tim_jax.runs import input_pipeline, measuring, start, teachers

PACKAGE = pathlib.Path(tim_jax.__file__).parent
KEY = rf"(?:{'|'.join(SECTIONS)}|seed)(?:\.\w+)*"
FORM = re.compile(rf"({KEY}(?:, {KEY})*) (?:is|are) (.+?); (?:it|they|each of them) must ", re.DOTALL)
TEXT = {"model.condition": "text", "data.text_width": "8", "data.text_tokens": "4"}
ENCODE = {"data.encode": "True"}
SIT = {"model.network": "sit", "model.bottleneck": "0"}
STEERED = {"sampling.steering.operator": "super_resolution:2"}
BITS = {"evaluation.metrics": "('bits_per_dim',)"}
NO_NULL = {"data.condition_dropout": "0.0"}
BUCKETS = {"data.buckets.area": "64", "data.batch_size": "4"}

# (overrides of configs/digits.py, the keys that the message begins with), by how far a run must get.
BUILD = [
    ({"data.height": "0"}, "data.height"),
    ({"data.batch_size": "0"}, "data.batch_size"),
    ({"data.batch_size": "10000001"}, "data.batch_size"),
    ({"data.batch_size": "15", "optimizer.accumulation": "2"}, "data.batch_size"),
    ({"data.condition_dropout": "1.0"}, "data.condition_dropout"),
    ({"data.held_out_share": "1.0"}, "data.held_out_share"),
    ({"data.flip": "2.0"}, "data.flip"),
    ({"data.paired_noise": "True", "data.flip": "0.5"}, "data.flip"),
    ({**TEXT, "data.text_width": "0"}, "data.text_width"),
    ({**TEXT, "data.text_tokens": "0"}, "data.text_tokens"),
    ({**BUCKETS, "data.buckets.max_buckets": "0"}, "data.buckets.max_buckets"),
    ({**BUCKETS, "data.buckets.max_cropped": "1.0"}, "data.buckets.max_cropped"),
    ({**BUCKETS, "data.buckets.area": "3"}, "data.buckets.area"),
    ({**BUCKETS, "data.buckets.tokens": "-1"}, "data.buckets.tokens"),
    ({"data.buckets.table": "((8, 12), (10, 8))"}, "data.buckets.table"),
    ({"data.buckets.table": "((8, 8), (8, 8))"}, "data.buckets.table"),
    ({"data.buckets.table": "((8, 8),) * 65"}, "data.buckets.table"),
    ({"loader.max_bad_share": "2.0"}, "loader.max_bad_share"),
    ({"loader.workers": "-1"}, "loader.workers"),
    ({"loader.cache_gib": "-1"}, "loader.cache_gib"),
    ({"training.compilation_cache_gib": "-1"}, "training.compilation_cache_gib"),
    ({"loader.directory": "~nobody-is-called-so/x"}, "loader.directory"),
    ({"training.compilation_cache": "file:///x"}, "training.compilation_cache"),
    ({"data.buckets.table": "(8, 8)"}, "data.buckets.table"),
    ({"data.mixture": "('digits', '', 1)"}, "data.mixture"),
    ({"checkpoint.resume": "runs/[1]"}, "checkpoint.resume"),
    ({"ema.online": "0.5"}, "ema.online"),
    ({"codecs.dtype": "float16"}, "codecs.dtype"),
    ({"codecs.tile": "-1", "codecs.autoencoder": "x"}, "codecs.tile"),
    ({**TEXT, "codecs.text_memory": "-1"}, "codecs.text_memory"),
    ({**ENCODE}, "data.encode"),
    ({**ENCODE, **TEXT}, "codecs.text_encoder"),
    ({**ENCODE, "codecs.autoencoder": "/nowhere"}, "codecs.autoencoder"),
    ({**ENCODE, "data.features_width": "8"}, "codecs.image_encoder"),
    ({"data.source": "latents", "data.images": "x", "data.features_width": "8"}, "codecs.image_encoder"),
    ({"model.patch_size": "3"}, "model.patch_size"),
    ({"model.size": "XXL"}, "model.size"),
    ({"model.dtype": "float16"}, "model.dtype"),
    ({"model.depth": "-1"}, "model.depth"),
    ({"model.heads": "5"}, "model.heads"),
    ({"model.encoder_depth": "9"}, "model.encoder_depth"),
    ({"model.dropout": "1.0"}, "model.dropout"),
    ({"model.decoupled_depth": "99"}, "model.decoupled_depth"),
    ({"model.decoupled_depth": "2", "model.conditioning": "r"}, "model.conditioning"),
    ({"model.class_tokens": "-1"}, "model.class_tokens"),
    ({"model.guidance_tokens": "4"}, "model.guidance_tokens"),
    ({"model.conditioning": "t-q"}, "model.conditioning"),
    ({"model.attention": "flash"}, "model.attention"),
    ({"model.remat": "everything"}, "model.remat"),
    ({"model.num_classes": "0"}, "model.num_classes"),
    ({"model.network": "sat"}, "model.network"),
    ({"model.network": "sit"}, "model.bottleneck"),
    ({"model.interval": "tokens"}, "model.interval"),
    ({**SIT, "model.interval": "token"}, "model.interval"),
    ({**SIT, "model.interval": "tokens", "model.decoupled_depth": "1"}, "model.interval"),
    ({**SIT, "model.clock": "t-1"}, "model.clock"),
    ({**SIT, "model.clock": "1-t", "transport.name": "vp"}, "model.clock"),
    ({**SIT, "model.positions": "learned"}, "model.positions"),
    ({**SIT, "model.positions_side": "8"}, "model.positions_side"),
    ({**SIT, "model.positions": "interpolated", "model.positions_side": "0"}, "model.positions_side"),
    ({**SIT, "data.width": "16"}, "model.positions"),
    ({**SIT, **BUCKETS}, "model.positions"),
    ({**SIT, "data.buckets.table": "((8, 8), (4, 12))"}, "model.positions"),
    ({**SIT, **TEXT}, "model.condition"),
    ({**SIT, "model.network": "jit"}, "model.context_start"),  # of size S, with four blocks
    ({**SIT, **SLICED, "model.network": "jit", "model.context_start": "1"}, "model.slices"),
    ({"transport.name": "otfm"}, "transport.name"),
    ({"transport.name": "edm", "transport.sigma_d": "0.0"}, "transport.sigma_d"),
    ({"transport.noise_std": "0.0"}, "transport.noise_std"),
    ({"transport.prediction": "y"}, "transport.prediction"),
    ({"transport.prediction": "x", "transport.prediction_clip": "-1.0"}, "transport.prediction_clip"),
    ({"transport.prediction": "x", "transport.prediction_clip": "0.0"}, "transport.prediction_clip"),
    ({**TAUGHT, "objective.name": "velocity_refiner", "transport.prediction": "x"}, "transport.prediction"),
    ({"transport.augmented_dimensions": "-1"}, "transport.augmented_dimensions"),
    ({"transport.augmented_dimensions": "64", "sampling.sampler": "sde"}, "transport.augmented_dimensions"),
    (
        {"transport.augmented_dimensions": "64", "data.paired_noise": "True", "data.condition_dropout": "0.0"},
        "transport.augmented_dimensions",
    ),
    ({"transport.shared_below": "1.5"}, "transport.shared_below"),
    ({"transport.shared_below": "0.1", "transport.shared_intervals": "0"}, "transport.shared_intervals"),
    ({"transport.shared_intervals": "3"}, "transport.shared_intervals"),
    ({"transport.shared_below": "0.1", "transport.prediction": "x"}, "transport.shared_below"),
    ({"transport.shared_below": "0.1", "objective.derivative": "dde"}, "objective.derivative"),
    ({"times.distribution": "normal"}, "times.distribution"),
    ({"times.distribution": "log_uniform"}, "times.distribution"),
    ({"times.distribution": "max"}, "times.distribution"),
    ({"times.intervals": "triadic"}, "times.intervals"),
    ({"times.intervals": "logit_normal", "times.distribution": "uniform"}, "times.distribution"),
    ({"objective.name": "flow_matching", "times.single_equal": "True"}, "times.single_equal"),
    ({"times.P_std": "0.0", "times.distribution": "log_normal"}, "times.P_std"),
    ({"times.share_equal": "1.5"}, "times.share_equal"),
    ({"times.share_equal": "0.8", "times.share_min": "0.7"}, "times.share_equal, times.share_min"),
    ({"times.shift_reference": "-1.0"}, "times.shift_reference"),
    *OF_OBJECTIVES,
    ({**TAUGHT, "teacher.guidance": "-1.0"}, "teacher.guidance"),
    *(
        ({**TAUGHT, "teacher.guidance": "2.0", "teacher.guidance_channels": channels}, "teacher.guidance_channels")
        for channels in ("-1", "2")
    ),
    ({**TAUGHT, "teacher.guidance_channels": "1"}, "teacher.guidance_channels"),
    ({**TAUGHT, "teacher.weak_checkpoint": "x"}, "teacher.weak_checkpoint"),
    (
        {**TAUGHT, "teacher.guidance": "2.0", "teacher.guidance_low": "0.9", "teacher.guidance_high": "0.5"},
        "teacher.guidance_low, teacher.guidance_high",
    ),
    ({**TAUGHT, "teacher.dtype": "float16"}, "teacher.dtype"),
    ({"optimizer.name": "sgd"}, "optimizer.name"),
    ({"optimizer.eps": "-1.0"}, "optimizer.eps"),
    ({"optimizer.learning_rate": "1e39"}, "optimizer.learning_rate"),
    ({"optimizer.schedule": "step"}, "optimizer.schedule"),
    ({"optimizer.learning_rate": "0.0"}, "optimizer.learning_rate"),
    ({"optimizer.clip": "-1.0"}, "optimizer.clip"),
    ({"optimizer.b2": "1.0"}, "optimizer.b2"),
    ({"optimizer.momentum": "0.9"}, "optimizer.momentum"),
    ({"optimizer.momentum": "1.0", "optimizer.name": "muon"}, "optimizer.momentum"),
    (
        {"optimizer.schedule": "cosine", "optimizer.decay_steps": "9", "optimizer.warmup_steps": "9"},
        "optimizer.decay_steps",
    ),
    ({"optimizer.decay_steps": "-1"}, "optimizer.decay_steps"),
    ({"optimizer.schedule": "constant", "optimizer.decay_steps": "9"}, "optimizer.decay_steps"),
    ({"optimizer.accumulation": "0"}, "optimizer.accumulation"),
    ({"optimizer.frozen": "(7,)"}, "optimizer.frozen"),
    ({"optimizer.frozen": "('no_such',)"}, "optimizer.frozen"),
    ({"optimizer.frozen": "('*',)"}, "optimizer.frozen"),
    ({"optimizer.learning_rate_factors": "('blocks',)"}, "optimizer.learning_rate_factors"),
    ({"optimizer.learning_rate_factors": "(('blocks', 0.0),)"}, "optimizer.learning_rate_factors"),
    ({"ema.slow": "1.0"}, "ema.slow"),
    ({"posthoc_ema.sigma_rel": "(0.05, 0.3)"}, "posthoc_ema.sigma_rel"),
    ({"posthoc_ema.sigma_rel": "(0.1, 0.10)"}, "posthoc_ema.sigma_rel"),
    ({"posthoc_ema.sigma_rel": "0.1", "posthoc_ema.every": "0"}, "posthoc_ema.every"),
    ({"posthoc_ema.sigma_rel": "0.1", "posthoc_ema.dtype": "int8"}, "posthoc_ema.dtype"),
    ({"posthoc_ema.every": "7"}, "posthoc_ema.every"),
    ({"mesh.data": "0"}, "mesh.data, mesh.fsdp, mesh.sequence, mesh.tensor"),
    ({"mesh.tensor": "3"}, "mesh.data, mesh.fsdp, mesh.sequence, mesh.tensor"),
    ({"mesh.accumulation": "-1"}, "mesh.accumulation"),
    ({"mesh.accumulation": "3", "data.batch_size": "16"}, "data.batch_size"),
    ({"training.steps": "0"}, "training.steps"),
    ({"training.steps": "many"}, "training.steps"),
    ({"training.steps": "1.5"}, "training.steps"),
    ({"training.sample_steps": "()"}, "training.sample_steps"),
    ({"training.sample_steps": "(0, 1)"}, "training.sample_steps"),
    ({"training.wandb": "project"}, "training.wandb"),
    ({"training.compare_every": "-1"}, "training.compare_every"),
    ({"training.recompute_every": "-1"}, "training.recompute_every"),
    ({"training.on_corruption": "restart"}, "training.on_corruption"),
    ({"checkpoint.keep": "0"}, "checkpoint.keep"),
    ({"checkpoint.every": "0"}, "checkpoint.every"),
    ({"checkpoint.every": "often"}, "checkpoint.every"),
    ({"checkpoint.every": "auto", "checkpoint.max_share": "0.0"}, "checkpoint.max_share"),
    ({"checkpoint.every": "auto", "checkpoint.max_share": "1.5"}, "checkpoint.max_share"),
    ({"checkpoint.max_share": "0.1"}, "checkpoint.max_share"),
    (
        {"checkpoint.local": "/local", "checkpoint.local_every": "5", "checkpoint.max_share": "0.1"},
        "checkpoint.max_share",
    ),
    ({"checkpoint.local": "/local", "checkpoint.local_every": "0"}, "checkpoint.local_every"),
    ({"checkpoint.local_every": "5"}, "checkpoint.local_every"),
    ({"sampling.ema": "fast"}, "sampling.ema"),
    ({"sampling.ema": "sigma_rel:0.1"}, "sampling.ema"),
    ({"posthoc_ema.sigma_rel": "0.1", "sampling.ema": "sigma_rel:0.4"}, "sampling.ema"),
    ({"sampling.sampler": "magic"}, "sampling.sampler"),
    ({"sampling.batch_size": "0"}, "sampling.batch_size"),
    ({"sampling.grid": "shifted", "sampling.shift": "0.0"}, "sampling.shift"),
    ({"sampling.stochasticity": "-1.0"}, "sampling.stochasticity"),
    ({"sampling.stochasticity": "1.0", "sampling.sampler": "euler"}, "sampling.stochasticity"),
    ({"sampling.parallel": "-1"}, "sampling.parallel"),
    ({"sampling.parallel": "8", "sampling.tolerance": "1.0"}, "sampling.tolerance"),
    ({"sampling.tolerance": "0.1"}, "sampling.tolerance"),
    ({"sampling.noise_scale": "vp", "sampling.sampler": "dpm_solver_2m"}, "sampling.noise_scale"),
    ({"sampling.unipc_variant": "bh3", "sampling.sampler": "unipc_2"}, "sampling.unipc_variant"),
    ({"sampling.stochasticity": "1.0", "sampling.sampler": "leapfrog"}, "sampling.stochasticity"),
    ({"sampling.diffusion": "brown", "sampling.sampler": "sde"}, "sampling.diffusion"),
    ({"sampling.diffusion_scale": "-1.0", "sampling.sampler": "sde"}, "sampling.diffusion_scale"),
    ({"sampling.last_step": "none", "sampling.sampler": "sde_heun"}, "sampling.last_step"),
    ({"sampling.pattern": "HPX", "sampling.sampler": "flowturbo"}, "sampling.pattern"),
    ({"sampling.pattern": "R", "sampling.sampler": "flowturbo"}, "sampling.pattern"),
    ({"sampling.pattern": "H2P3", "sampling.sampler": "flowturbo"}, "sampling.pattern"),
    ({"sampling.pattern": "HR", "sampling.sampler": "flowturbo"}, "sampling.pattern"),
    ({"sampling.pattern": "H1R", "sampling.sampler": "flowturbo"}, "sampling.refiner"),
    ({"sampling.plan": "best"}, "sampling.plan"),
    ({"sampling.plan": "learned", "sampling.sampler": "a_flops"}, "sampling.sampler"),
    ({"sampling.parallel": "4", "sampling.sampler": "sada"}, "sampling.parallel"),
    ({"sampling.plan": "learned", "sampling.stochasticity": "0.5"}, "sampling.stochasticity"),
    ({**SIT, **SLICED, "model.network": "ddt"}, "model.slices"),
    ({"data.latent_scale": "-1.0"}, "data.latent_scale"),
    ({"sampling.guidance": "-1.0"}, "sampling.guidance"),
    ({"sampling.guidance_channels": "-1"}, "sampling.guidance_channels"),
    ({"sampling.guidance_channels": "2"}, "sampling.guidance_channels"),
    ({**STEERED, "sampling.steering.operator": "cartoon"}, "sampling.steering.operator"),
    ({**STEERED, "sampling.steering.operator": "super_resolution:two"}, "sampling.steering.operator"),
    ({**STEERED, "sampling.steering.operator": "greyscale:3"}, "sampling.steering.operator"),
    ({**STEERED, "objective.name": "difference_transition_matching"}, "sampling.steering.operator"),
    ({**STEERED, "sampling.steering.method": "magic"}, "sampling.steering.method"),
    ({**STEERED, "sampling.steering.loss": "cubic"}, "sampling.steering.loss"),
    ({**STEERED, "sampling.steering.estimate": "middle"}, "sampling.steering.estimate"),
    ({**STEERED, "sampling.steering.iterations": "0"}, "sampling.steering.iterations"),
    ({**STEERED, "sampling.steering.scale": "-1.0"}, "sampling.steering.scale"),
    (
        {"sampling.steering.operator": "brightness", "sampling.steering.method": "resample"},
        "sampling.steering.method",
    ),
    ({**STEERED, "sampling.sampler": "leapfrog"}, "sampling.sampler"),
    ({**STEERED, "sampling.parallel": "4"}, "sampling.parallel"),
    ({**STEERED, "sampling.plan": "learned"}, "sampling.plan"),
    ({**STEERED, "sampling.steering.method": "dps", "sampling.int8": "True"}, "sampling.int8"),
    (
        {"sampling.guidance": "2.0", "sampling.guidance_low": "0.9", "sampling.guidance_high": "0.5"},
        "sampling.guidance_low, sampling.guidance_high",
    ),
    ({"objective.input_guidance.max_scale": "2.0", "sampling.guidance": "3.0"}, "sampling.guidance"),
    (
        {"objective.input_guidance.max_scale": "2.0", "sampling.guidance": "2.0", "sampling.guidance_low": "0.6"},
        "sampling.guidance_low, sampling.guidance_high",
    ),
    (
        {"objective.input_guidance.max_scale": "2.0", "sampling.guidance": "2.0", "sampling.exclusive_ends": "True"},
        "sampling.exclusive_ends",
    ),
    ({**NO_NULL, "sampling.guidance": "2.0"}, "data.condition_dropout"),
    ({**NO_NULL, "objective.input_guidance.max_scale": "2.0"}, "data.condition_dropout"),
    ({**NO_NULL, **GUIDED}, "data.condition_dropout"),
    ({"evaluation.features": "dino"}, "evaluation.features"),
    ({"evaluation.features": "inception", "data.channels": "4"}, "evaluation.features"),
    ({"evaluation.metrics": "('fid',)"}, "evaluation.metrics"),
    ({"evaluation.labels": "uniform"}, "evaluation.labels"),
    ({"evaluation.batch_size": "0"}, "evaluation.batch_size"),
    ({"evaluation.num_samples": "3"}, "evaluation.num_samples"),
    ({**BITS, "evaluation.likelihood.steps": "0"}, "evaluation.likelihood.steps"),
    ({**BITS, "evaluation.likelihood.probes": "-1"}, "evaluation.likelihood.probes"),
    ({**BITS, "evaluation.likelihood.num_images": "-1"}, "evaluation.likelihood.num_images"),
    ({"evaluation.periodic.every": "-1"}, "evaluation.periodic.every"),
    ({"evaluation.periodic.num_samples": "3"}, "evaluation.periodic.num_samples"),
    ({"evaluation.periodic.steps": "()"}, "evaluation.periodic.steps"),
    ({"evaluation.periodic.steps": "(0,)"}, "evaluation.periodic.steps"),
    ({"evaluation.periodic.emas": "('fast',)"}, "evaluation.periodic.emas"),
    # of no effect
    ({"evaluation.likelihood.probes": "0"}, "evaluation.likelihood.probes"),
    ({"transport.sigma_d": "0.7"}, "transport.sigma_d"),
    ({"transport.prediction_clip": "0.1"}, "transport.prediction_clip"),
    ({"times.P_mean": "0.5"}, "times.P_mean"),
    ({"teacher.guidance": "2.0"}, "teacher.guidance"),
    ({"start.ema": "online"}, "start.ema"),
    ({"sampling.shift": "2.0"}, "sampling.shift"),
    ({"sampling.steering.scale": "2.0"}, "sampling.steering.scale"),
    ({**STEERED, "sampling.steering.gamma": "2.0"}, "sampling.steering.gamma"),
    (
        {**STEERED, "sampling.steering.method": "resample", "sampling.steering.scale": "2.0"},
        "sampling.steering.scale",
    ),
    ({**STEERED, "sampling.steering.classifier": "x"}, "sampling.steering.classifier"),
    ({"sampling.noise_scale": "sde"}, "sampling.noise_scale"),
    ({"sampling.unipc_variant": "bh1"}, "sampling.unipc_variant"),
    ({"sampling.pattern": "H1P", "sampling.sampler": "heun"}, "sampling.pattern"),
    ({"sampling.refiner": "x", "sampling.sampler": "flowturbo"}, "sampling.refiner"),
    ({"sampling.diffusion_scale": "2.0", "sampling.sampler": "heun"}, "sampling.diffusion_scale"),
    ({"model.projector_width": "8"}, "model.projector_width"),
    ({"codecs.tile": "8"}, "codecs.tile"),
    ({"codecs.text_escapes": "True"}, "codecs.text_escapes"),
    ({"data.images": "here"}, "data.images"),
    ({"data.buckets.max_buckets": "3"}, "data.buckets.max_buckets"),
    ({"evaluation.path": "here"}, "evaluation.path"),
    ({"training.compilation_cache": "", "training.compilation_cache_gib": "5.0"}, "training.compilation_cache_gib"),
    ({**TEXT, "evaluation.labels": "balanced"}, "evaluation.labels"),
    ({**RESTORE, "evaluation.labels": "balanced"}, "evaluation.labels"),
]
DATA = [
    ({"data.source": "digit"}, "data.source"),
    ({"data.split": "test"}, "data.split"),
    ({"data.held_out_share": "0.1"}, "data.held_out_share"),
    ({"data.path": "nowhere", "data.source": "folder"}, "data.path"),
    ({"data.source": "folder"}, "data.path"),
    ({"data.height": "16"}, "data.height, data.width"),
    ({"data.channels": "3"}, "data.channels"),
    ({"data.mixture": "(('digits', ''),)"}, "data.mixture"),
    ({"data.mixture": "(('digits', '', 0),)"}, "data.mixture"),
    ({"data.source": "photos", "data.channels": "3", "data.height": "128"}, "data.height, data.width"),
    ({"model.num_classes": "4"}, "model.num_classes"),
    ({"loader.directory": "gs://bucket/folder"}, "loader.directory"),
]
MEASURE = [
    ({"evaluation.reference": "nowhere.npz"}, "evaluation.reference"),
    ({"evaluation.metrics": "('sfid',)"}, "evaluation.metrics"),
    ({"evaluation.held_out": "nowhere"}, "evaluation.held_out"),
    ({"evaluation.held_out": "train"}, "evaluation.held_out"),
]
START = [
    ({"start.checkpoint": "nowhere"}, "start.checkpoint"),
    ({"start.checkpoint": "{run}", "start.ema": "fast"}, "start.ema"),
    ({"start.checkpoint": "{run}", "start.reinitialise": "('no_such',)"}, "start.reinitialise"),
    ({"start.checkpoint": "{run}", "start.reinitialise": "('*',)"}, "start.reinitialise"),
    ({"start.checkpoint": "{run}", "model.num_classes": "12"}, "start.checkpoint"),
    ({"start.checkpoint": "{run}", "transport.prediction": "x"}, "start.checkpoint"),
    ({"checkpoint.resume": "nowhere"}, "checkpoint.resume"),
    ({"checkpoint.resume": "{run}", "seed": "7"}, "seed"),
    (
        {"objective.reward.weight": "1.0", "objective.reward.name": "similarity"},
        "objective.reward.classifier",
    ),
    ({"objective.name": "ctm", "teacher.checkpoint": "nowhere"}, "teacher.checkpoint"),
    ({"objective.name": "ctm"}, "teacher.checkpoint"),
    ({"objective.name": "ctm", "teacher.checkpoint": "{run}", "teacher.ema": "fast"}, "teacher.ema"),
    ({"objective.name": "ctm", "teacher.checkpoint": "{run}", "model.num_classes": "12"}, "teacher.checkpoint"),
    ({**JUDGED, "teacher.checkpoint": "{run}", "objective.adversary.blocks": "(1, 9)"}, "objective.adversary.blocks"),
]
CASES = [(stage, *case) for stage, cases in enumerate((BUILD, DATA, MEASURE, START)) for case in cases]
SETTLED = {"loader.directory", "evaluation.held_out"}  # by `provoke`, unless a case gives them


@pytest.fixture(scope="module")
def provoked(tmp_path_factory):
    """[(message, (file, line of the raise))] of all cases."""
    folder = tmp_path_factory.mktemp("refusals")
    small = TINY | {"data.height": "8", "data.width": "8", "loader.directory": str(folder / "data")}
    run = workdir(folder / "run", "base", **small)
    with one_device():
        return [provoke(stage, small | {k: v.format(run=run) for k, v in given.items()}) for stage, given, _ in CASES]


def provoke(stage, overrides):
    """The message that a configuration is refused with, and the place that refuses."""
    try:
        run = build(load_config("base", overrides), jax.devices()[:1])
        if stage == 1:
            input_pipeline.open_pipeline(run)
        if stage == 2:
            measuring.open_measurement(run)
        if stage == 3:
            start.first_state(teachers.with_teachers(run), epath.Path(overrides["loader.directory"]) / "none")
    except ValueError as error:
        trace = error.__traceback__
        while trace.tb_next is not None:
            trace = trace.tb_next
        return str(error), (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
    return None, None


def name_of(case):
    stage, given, key = case
    return f"{stage}-{','.join(f'{key}={value}' for key, value in given.items())}"


@pytest.mark.parametrize("number", range(len(CASES)), ids=[name_of(case) for case in CASES])
def test_a_refusal_names_its_key_as_it_is_typed(number, provoked):
    message, _ = provoked[number]
    assert message is not None, "nothing was refused"
    assert "\n" not in message and (found := FORM.match(message)), message
    assert found[1] == CASES[number][2], message
    assert set(found[1].split(", ")) <= known_keys()


@functools.cache
def known_keys():
    return flatten(loading.load("base").get_config()).keys() | {"ema.score", "ema.online", "ema.classifier"}


@functools.cache
def refusals():
    """{(file, first line, last line): message as source} of the places that refuse a key of a configuration."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Raise)
                and isinstance(node.exc, ast.Call)
                and "ValueError" in ast.dump(node.exc.func)
            ):
                message = ast.unparse(node.exc).removeprefix("ValueError(").lstrip("f'\"")
                if re.match(rf"({'|'.join(SECTIONS)})\.|\{{(key|said|given|named)\}}", message):
                    found[str(path), node.lineno, node.end_lineno] = message
    return found


def test_every_place_that_refuses_is_provoked(provoked):
    """Whatever is added must have its case above, or its reason."""
    reached = {site for _, site in provoked if site}
    left = []
    for (path, first, last), message in refusals().items():
        if not any(file == path and first <= line <= last for file, line in reached):
            place = f"{pathlib.Path(path).relative_to(PACKAGE)}: {message}"
            if not any(place.startswith(known) for known in NOT_PROVOKED):
                left.append(place)
    print(f"{len(refusals())} places that refuse, {len(refusals()) - len(left)} provoked or with a reason")
    assert not left, "\n".join(left)


def test_every_place_that_refuses_says_what_is_and_what_must_be():
    """Also where no case goes: {words} stand for what the code puts there."""
    subject = r"( (is|are) .+|\{(where|named|said|given|source\.where)\}.*)"
    form = re.compile(rf"{subject}; (it|they|each of them) must |^\{{(named|given)\}}", re.DOTALL)
    wrong = [
        f"{pathlib.Path(path).relative_to(PACKAGE)}:{line}: {message}"
        for (path, line, _), message in refusals().items()
        if not form.search(message)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "given", ["objective.weight.kernel=cubic", "model.remat=x", "start.ema=online", "mesh.tensor=3"]
)
def test_on_the_command_line_it_is_one_line_and_exit_code_2(given, tmp_path, capsys):
    error = told(train.main, ["--config=digits", f"--workdir={tmp_path}", f"--config.{given}"], capsys)
    key = given.partition("=")[0]
    assert FORM.match(error.removeprefix("error: ")) and key in error
