"""Keys: one page, written from the dataclasses; each is an attribute and acts somewhere; their old names."""

import ast
import json
import pathlib

import jax
import pytest
from etils import epath
from ml_collections import ConfigDict

import tim_jax
from tests.helpers.workdirs import TINY
from tim_jax.config import identity, loading, page, renames
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.config.keys import FREE, flatten
from tim_jax.config.sections import SECTIONS, keys_of, unused
from tim_jax.runs import workdir

PACKAGE = pathlib.Path(tim_jax.__file__).parent
ROOT = PACKAGE.parent
ALL = flatten(loading.load("base").get_config())
# What a section is called where it is handed to, besides its own name, "settings", and `self` where it is defined.
CALLED = {
    "model": {"network", "net", "teacher"},
    "evaluation": {"of"},
    "sampling": {"sampler"},
    "checkpoint": {"saving"},
}
# Keys that choose from a table or are looked up by name: where.
BY_NAME = {
    "model.size": "config/network.py: SIZES[",
    "model.network": "config/network.py: NETWORKS[",
    "mesh.data": "training/mesh.py: AXES",
    "mesh.fsdp": "training/mesh.py: AXES",
    "mesh.tensor": "training/mesh.py: AXES",
    "mesh.sequence": "training/mesh.py: AXES",
    "mesh.accumulation": "config/fewer.py: config.mesh.accumulation",
    "transport.sigma_d": "transitions/transports.py: def edm(sigma_d",
    "transport.shared_intervals": "transitions/transports.py: def with_shared_times(",
    "sampling.noise_scale": "transitions/sampling/planning.py: getattr(sampling, key) for key in sampler.keys",
    "sampling.unipc_variant": "transitions/sampling/planning.py: getattr(sampling, key) for key in sampler.keys",
    "sampling.diffusion": "transitions/sampling/planning.py: getattr(sampling, key) for key in sampler.keys",
    "sampling.last_step": "transitions/sampling/planning.py: getattr(sampling, key) for key in sampler.keys",
    "teacher.ema": 'runs/teachers.py: "ema"',
    "teacher.weak_ema": 'runs/teachers.py: "weak_ema"',
    "teacher.weak_checkpoint": 'runs/teachers.py: "weak_checkpoint"',
}


def test_the_page_of_all_keys_is_what_the_dataclasses_say():
    """`python -m tim_jax.config.page > configs/base.py` writes it."""
    assert (ROOT / "configs" / "base.py").read_text() == page.page()


def test_a_key_is_an_attribute():
    run = build(load_config("base", TINY), jax.devices()[:1])
    objective = run.trainer.step.objective
    things = {name: getattr(run, name) for name in SECTIONS if name != "mesh" and hasattr(run, name)}
    things |= {"objective": objective, "times": objective.times, "model": run.network, "transport": run.transport}
    assert things.keys() >= SECTIONS.keys() - {"optimizer", "ema", "mesh"}
    settled = {
        "model.size",
        "model.network",
        "model.dtype",
        "sampling.sampler",
        "transport.sigma_d",
    }  # and those that a size sets
    for key, value in flatten(run.config).items():
        section, *path = key.split(".")
        if section not in things or value is None or key in settled:
            continue
        thing = things[section]
        if section == "model" and not hasattr(thing, path[0]):  # of other networks
            continue
        for name in path:
            thing = getattr(thing, name)
        assert thing == value or (section == "model" and not value), key


def attributes():
    """{attribute: {(file, what it is taken of)}} of the package, but for `config`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        if file.startswith("config/"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                of = node.value
                name = of.id if isinstance(of, ast.Name) else of.attr if isinstance(of, ast.Attribute) else ""
                found.setdefault(node.attr, set()).add((file, name))
            # getattr(self, name) for name in a table: the key stands there as a text
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                found.setdefault(node.value, set()).add((file, "by name"))
    return found


def test_a_key_is_found_where_it_acts():
    """For `a.b.c`: `b.c`, or `self.c` in the file that defines it, outside of `config`."""
    found, lost = attributes(), []
    defined = {}
    for section, about in SECTIONS.items():
        waiting = [(section, key) for key in keys_of(*about.kinds) if key.name not in about.omit]
        while waiting:
            path, key = waiting.pop()
            if key.group:
                waiting += [(f"{path}.{key.name}", inner) for inner in keys_of(key.group)]
            else:
                defined[f"{path}.{key.name}"] = key.kind
    assert defined.keys() == {key for key in ALL if key.split(".")[0] not in (*FREE, "seed", "plugin")}
    for key, kind in defined.items():
        *_, above, name = key.split(".")
        section = key.split(".")[0]
        own = pathlib.Path(*kind.__module__.split(".")[1:]).as_posix()
        called = {above, "settings", *CALLED.get(section, ())}
        acts = any(
            of in called or (of == "self" and file in (f"{own}.py", f"{own}/__init__.py"))
            for file, of in found.get(name, ())
        )
        if key in BY_NAME:
            file, _, words = BY_NAME[key].partition(": ")
            acts = words in (PACKAGE / file).read_text()
        if not acts:
            lost.append(f"{key}: {sorted(found.get(name, ()))}")
    assert not lost, "\n".join(lost)


def test_rules_of_no_effect_are_about_keys_that_there_are():
    for about, (reason, has_none) in unused().items():
        assert set(about) <= ALL.keys() and reason
        has_none(loading.load("base").get_config())


def test_old_names_lead_to_keys_that_there_are():
    """One has had two other names, `objective.rollout.max_jumps`."""
    for old, new in renames.KEYS.items():
        assert old not in ALL and new in ALL
    assert set(renames.WEIGHTS) <= ALL.keys() and len(set(renames.KEYS.values())) == len(renames.KEYS) - 1


@pytest.mark.parametrize("old", renames.KEYS)
def test_an_old_name_in_a_file_is_answered_with_the_new_one(old):
    new = renames.KEYS[old]
    config = loading.load("base").get_config()
    *sections, last = old.split(".")
    place = config
    for name in sections:
        if name not in place:
            place[name] = ConfigDict()
        place = place[name]
    place[last] = 1
    with pytest.raises(ValueError, match=f"^config.{old}: no such key; renamed to config.{new}$"):
        identity.check_keys(config)


def test_a_configuration_of_before_is_read_by_the_names_of_today():
    """That of the run of the notebooks, which version 0.1 has made."""
    folder = epath.Path(ROOT / "notebooks" / "digits")
    before = flatten(json.loads((folder / "config.json").read_text()))
    now = flatten(workdir.recorded(folder))
    assert now.keys() == ALL.keys()
    assert before["objective.velocity"] == "student" and now["objective.velocity"] == "online"
    assert before.pop("evaluation.held_out") == "held_out" and now["evaluation.held_out"] == "auto"
    for key, value in before.items():
        if value is not None and value != "student":
            assert now[renames.KEYS.get(key, key)] == value, key


def test_labels_of_restorations_that_a_run_has_recorded_are_let_go():
    """They had no effect, and are refused now."""
    flat = {"evaluation.labels": "balanced", "objective.coupling.task": "inpainting"}
    assert renames.renamed(flat)["evaluation.labels"] == "data"
    assert renames.renamed(flat | {"objective.coupling.task": "none"})["evaluation.labels"] == "balanced"


def test_a_run_of_before_is_the_same_run():
    folder = epath.Path(ROOT / "notebooks" / "digits")
    config = ConfigDict(workdir.load(folder, {"training.steps": "9", "model.remat": "full"}).to_dict())
    identity.compare(workdir.recorded(folder), config, folder)
    assert "objective.adaptive.power" in identity.of(config) and "model.remat" not in identity.of(config)
    with pytest.raises(ValueError, match=r"^objective.weight.kernel is 'sqrt'; it must be 'square', since .*digits"):
        workdir.load(folder, {"objective.weight.kernel": "sqrt"})
