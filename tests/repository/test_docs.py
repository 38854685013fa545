"""README and docs: every command parses, keys and configurations exist, links lead somewhere, Python is valid.

Commands are read from fenced blocks and from inline code. Those that cost little are run.
"""

import ast
import importlib
import pathlib
import re
import shlex
import subprocess

import pytest
import yaml

from tim_jax.config import keys, loading
from tim_jax.config.command_line import Parser, load_config
from tim_jax.transitions import OBJECTIVES

ROOT = pathlib.Path(__file__).resolve().parents[2]
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, *sorted((ROOT / "docs").glob("*.md"))]
UPGRADING = ROOT / "docs" / "upgrading.md"
README_LINES = 200

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?)\s*$", re.M)
MODULE = re.compile(r"python -m (tim_jax(?:\.\w+)+)|tim-jax (\w+)")
KEY = re.compile(r"([a-z]\w*(?:\.\w+)+)(?:=(\S+))?")
OUTSIDE = ("http://", "https://")
FILES = (".py", ".json", ".md")

BASE = loading.load("base").get_config()
KEYS = keys.flatten(BASE)
SECTIONS = {".".join(key.split(".")[:count]) for key in KEYS for count in range(1, key.count(".") + 1)}


def blocks(page, language):
    """The fenced blocks of a page in a language, without their indentation."""
    for indent, name, text in FENCE.findall(page.read_text()):
        if name == language:
            yield "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))


def prose(page):
    """A page without its fenced blocks, and without the names that are no more."""
    text = FENCE.sub("", page.read_text())
    if page == UPGRADING:
        text = re.sub(r"^\| `[^|]*\|", "|", text, flags=re.M)
    return text


def typed(page):
    """The lines of a page that are typed into a shell, as words without comments and assignments."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line, comments=True)
    for text in INLINE.findall(prose(page)):
        if MODULE.match(text):
            yield shlex.split(text)


def commands():
    """(page, module, arguments) of every command of the package, each once."""
    found = {}
    for page in PAGES:
        for words in typed(page):
            words = [word for word in words if word not in ("…", "...")]
            match = MODULE.match(" ".join(words))
            if match:
                module, short = match.groups()
                arguments = words[3:] if module else words[2:]
                found.setdefault((module or f"tim_jax.{short}", *arguments), page.name)
    return [(page, module, arguments) for (module, *arguments), page in found.items()]


COMMANDS = [command for command in commands() if command[2] != [] or command[1] == "tim_jax.bench"]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
every_command = pytest.mark.parametrize(
    ("page", "module", "arguments"), COMMANDS, ids=[f"{page}:{module} {' '.join(of)}" for page, module, of in COMMANDS]
)


def entry(module):
    """The module with the parser and the `main` behind `python -m MODULE`."""
    found = importlib.import_module(module)
    return found if hasattr(found, "main") else importlib.import_module(f"{module}.__main__")


@every_command
def test_commands_parse_and_their_keys_exist(page, module, arguments, capsys):
    parser = entry(module).parser()
    if "--help" in arguments:
        with pytest.raises(SystemExit) as end:
            parser.parse_args(list(arguments))
        assert end.value.code == 0 and "usage" in capsys.readouterr().out
        return
    takes_keys = isinstance(parser, Parser)
    read, overrides = parser.parse(list(arguments)) if takes_keys else (parser.parse_args(list(arguments)), {})
    name = getattr(read, "config", None) or "base"
    if module == "tim_jax.ablate":
        assert hasattr(loading.load(name), "get_ablation")
        name = "base"
    load_config(name, overrides)
    if getattr(read, "teacher", None):
        load_config(read.teacher, {})


def test_the_commands_were_found():
    assert len(COMMANDS) > 50
    here = {path.stem for path in (ROOT / "tim_jax").glob("*.py")} - {"__init__", "__main__", "types"}
    here |= {path.parent.name for path in (ROOT / "tim_jax").glob("*/__main__.py")}
    assert {module.removeprefix("tim_jax.") for _, module, _ in COMMANDS} == here


@every_page
def test_keys_in_the_text_exist(page):
    """`section.key`, and `section.key=value`, which must have the type of the key."""
    for text in INLINE.findall(prose(page)):
        match = KEY.fullmatch(text)
        if match is None or match[1].split(".")[0] not in BASE or match[1].endswith(FILES):
            continue
        key, value = match.groups()
        assert key in KEYS or key in SECTIONS or key.startswith("ema."), f"`{text}`: no such key"
        if value:
            load_config("base", {key: value})


@every_page
def test_configurations_in_the_text_exist(page):
    for text in INLINE.findall(prose(page)):
        if re.fullmatch(r"(configs/)?[\w/]+\.py", text) and not text.startswith(("tim_jax/", "tests/", "docs/")):
            names = [path.name for path in ROOT.glob("configs/**/*.py")] + [
                path.name for path in ROOT.glob("tim_jax/**/*.py")
            ]
            assert pathlib.Path(text).name in names, f"`{text}`: no such file"
        elif re.fullmatch(r"(tim_jax|tests|configs|launch|notebooks)/[\w/.]*", text):
            assert (ROOT / text).exists(), f"`{text}`: no such file or folder"


def anchor(heading):
    """The anchor of a heading, as the site makes it."""
    text = re.sub(r"[^\w\s-]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading.replace("`", "")).strip().lower())
    return re.sub(r"[\s-]+", "-", text)


@every_page
def test_links_lead_somewhere(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith(OUTSIDE):
            continue
        name, _, fragment = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{target}: no such file"
        if fragment:
            assert fragment in {anchor(heading) for heading in HEADING.findall(path.read_text())}, (
                f"{target}: no anchor"
            )


@every_page
def test_shell_scripts_exist_and_know_their_arguments(page):
    for words in typed(page):
        words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S+", word)]
        if words and words[0] in ("bash", "sbatch"):
            assert (ROOT / words[1]).is_file(), f"{words[1]}: no such script"
        if words and words[0] == "pip" and words[-1].startswith(".["):
            extras = re.findall(r"^(\S+) = \[", (ROOT / "pyproject.toml").read_text(), re.M)
            assert words[-1][2:-1] in extras, f"{words[-1]}: no such extra"


DRY_RUNS = [words for page in PAGES for words in typed(page) if "--dry-run" in words]


@pytest.mark.parametrize("words", DRY_RUNS, ids=lambda words: words[1])
def test_dry_runs_run(words):
    assert subprocess.run(words, cwd=ROOT, capture_output=True, timeout=60).returncode == 0


@every_page
def test_python_is_valid_and_its_imports_exist(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


def test_own_objective_and_transport_are_what_they_say(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "scaled", None)  # which the page adds, and no other test shall meet
    own = {}
    for block in blocks(ROOT / "docs" / "your_own.md", "python"):
        exec(block, own)
    transport = own["reversed_sign"]()
    objective = own["patient_tim"](transport)
    objective.check()
    assert objective.times.share_equal == 0.9 and objective.transport.name == "reversed_sign"


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= README_LINES


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    """On the small run of the notebooks, in place of that of the first command."""
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(README, "python")
    assert '"runs/digits"' in block
    exec(block.replace('"runs/digits"', repr(str(ROOT / "notebooks" / "digits"))), {})
    assert len(list(tmp_path.glob("*.png"))) == 3


@pytest.mark.slow
def test_the_step_that_the_readme_tries_is_taken(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (arguments,) = [
        words for page, module, words in COMMANDS if "--check" in words and "configs/digits_tiny.py" in words[0]
    ]
    entry("tim_jax.train").main(arguments)
    assert "one step of" in capsys.readouterr().out and list(tmp_path.iterdir()) == []


def test_every_page_is_in_the_navigation_once():
    text = re.sub(r"^hooks:.*$", "", (ROOT / "mkdocs.yml").read_text(), flags=re.M)
    pages = re.findall(r"[\w/]+\.md", str(yaml.safe_load(text)["nav"]))
    assert sorted(pages) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


OLD_NAMES = re.findall(r"^\| `([a-z]\w*(?:\.\w+)+)` \| `([a-z]\w*(?:\.\w+)+)` \|$", UPGRADING.read_text(), re.M)
OLD_KEYS = [(old, new) for old, new in OLD_NAMES if new in KEYS]


def test_old_keys_are_listed():
    assert len(OLD_KEYS) == sum(not old.startswith("tim_jax.") for old, _ in OLD_NAMES) > 30


@pytest.mark.parametrize(("old", "new"), OLD_KEYS)
def test_old_keys_are_answered_with_the_new_ones(old, new):
    assert old not in KEYS
    with pytest.raises(ValueError, match=re.escape(new)):
        load_config("base", {old: "x"})


def test_every_fault_of_storage_has_the_test_that_its_line_names():
    """In the table of docs/robustness.md."""
    table = (ROOT / "docs" / "robustness.md").read_text().partition("## Faults of storage")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[-1] for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 15
    for row in rows:
        files = [ROOT / name for name in re.findall(r"`(tests/\w+/\w+\.py)`", row)]
        assert files or row.startswith("the same"), row
        text = "".join(file.read_text() for file in files)
        assert all(f"def {name}(" in text for name in re.findall(r"`(test_\w+)`", row)), row
