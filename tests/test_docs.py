"""The documentation is true of the code: its blocks run, its commands parse, its links and names exist."""

import contextlib
import functools
import importlib.util
import re
import runpy
import shlex
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

import wuskern as wk
from tests import pages
from tests.conftest import ROOT
from wuskern import cli
from wuskern.train import methods

PAGES = pages.pages()
MOST_LINES = 150
pytestmark = pytest.mark.skipif(len(PAGES) < 10, reason="there is no documentation beside the tests")
each_page = pytest.mark.parametrize("page", PAGES, ids=pages.name)
with_python = [
    pytest.param(page, marks=pytest.mark.more) if pages.needs(page) & {*pages.TRAINERS} else page
    for page in PAGES
    if pages.blocks(page, "python")
]


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """An empty folder, one process as torchrun starts it, and a compiler that leaves the C++ out."""
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    yield
    torch.compiler.reset()
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # these are of torch's compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:.*(does not have many workers|LeafSpec|number of training batches):")  # of Lightning
@pytest.mark.parametrize("page", with_python, ids=pages.name)
def test_the_blocks_of_a_page_run_one_after_the_other(page, alone, monkeypatch):
    module = type(sys)("__main__")  # where a class of the page lives
    monkeypatch.setitem(sys.modules, "page_of_the_documentation", module)
    module.__dict__["__name__"] = "page_of_the_documentation"
    for block in pages.blocks(page, "python"):
        assert block.needs is None or block.needs in pages.NEEDS
        code = compile("\n" * (block.line - 1) + block.code, page, "exec")
        if block.needs != "GPU" and (block.needs not in pages.LIBRARIES or importlib.util.find_spec(block.needs)):
            exec(code, module.__dict__)


@pytest.mark.parametrize("name", ["digits.py", "ddp.py"])
def test_an_example_runs(name, alone, monkeypatch, capsys):
    if name == "digits.py":
        pytest.importorskip("sklearn")
    for _ in range(2):  # the second time it goes on, if it can
        monkeypatch.setattr(sys, "argv", [name, "--epochs=5"])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    assert "epoch 4: " in capsys.readouterr().out


def test_the_readme_is_short_and_begins_with_a_whole_script():
    readme = ROOT / "README.md"
    assert len(readme.read_text().splitlines()) <= MOST_LINES
    script = pages.blocks(readme, "python")[0].code.splitlines()
    assert len(script) <= 15
    assert "backward()" in "\n".join(script)


def test_the_readme_has_the_commands_that_ci_runs():
    wanted = re.findall(r"make [\w-]+", (ROOT / ".ci" / "run").read_text())
    assert wanted
    for path in ("README.md", ".github/workflows/ci.yml"):
        assert [command for command in wanted if command not in (ROOT / path).read_text()] == []


# ---- what a page names ----------------------------------------------------------------------------------------------


def the_commands(page, program):
    """The words of each command of a page, behind the program's name, variables and launchers."""
    found = []
    for command in pages.commands(page):
        with contextlib.suppress(ValueError):  # a quotation that is not closed: no command
            words = [word for word in shlex.split(command, comments=True) if not re.fullmatch(r"[A-Z_]+=.*", word)]
            if words[:1] == ["torchrun"] and "-m" in words:
                words = words[words.index("-m") + 1 :]
            words = [word for word in words if word != "--help"]
            if words[:1] == [program] and len(words) > 1:
                found.append(words[1:])
    return found


@each_page
def test_commands_of_wuskern_parse(page):
    for words in the_commands(page, "wuskern"):
        if len(words) == 1:  # the name of a command that may need arguments
            with pytest.raises(SystemExit):
                cli._parsed([*words, "--help"])
            continue
        given = cli._parsed(words)
        if hasattr(given, "policy"):
            methods.parse(given.policy)


@each_page
def test_make_knows_its_targets(page):
    makefile = (ROOT / "Makefile").read_text()
    lines = re.findall(r"^(?:\.PHONY: )?([\w -]+)(?=:|$)", makefile, re.MULTILINE)
    targets = {word for line in lines for word in line.split()} | set(re.findall(r"GPU_GOALS := (.*)", makefile)[0].split())
    asked = {word for words in the_commands(page, "make") for word in words}
    assert {target for target in asked if re.fullmatch("[a-z-]+", target)} <= targets


@each_page
def test_programs_and_variables_exist(page):
    text = page.read_text()
    for program in re.findall(r"python -m ((?:bench|tests)[\w.]*)", text):
        path = ROOT / program.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), program
    assert [name for name in re.findall(r"WUSKERN_\w+", text) if name not in code()] == []


@functools.cache
def code():
    files = [ROOT / "setup.py", *(ROOT / "wuskern").rglob("*.py"), *(ROOT / "csrc").rglob("*.*")]
    return "".join(path.read_text() for path in files)


@each_page
def test_links_lead_somewhere(page):
    assert [link for link in pages.links(page) if not (page.parent / link).exists()] == []


@each_page
def test_files_and_folders_exist(page):
    """Of this repository, by their paths; STEM stands for a name."""
    named = re.findall(r"`((?:wuskern|csrc|tests|bench|docs|examples)/[\w./-]+)`", page.read_text())
    assert [path for path in named if "STEM" not in path and not (ROOT / path).exists()] == []


def test_the_design_names_the_rooms_that_there_are():
    table = (ROOT / "docs" / "design.md").read_text().split("## One stem")[0]
    rooms = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall("`(.*?)`", row)]
    package = ROOT / "wuskern"
    there = {path.name for path in package.iterdir() if (path / "__init__.py").exists()}
    assert there <= set(rooms)
    assert [room for room in rooms if not (package / room).exists()] == []


@each_page
def test_public_names_exist(page):
    """``wk.a.b`` in a text or a block."""
    for path in set(re.findall(r"\bwk((?:\.[A-Za-z]\w*)+)", page.read_text())):
        functools.reduce(getattr, path[1:].split("."), wk)


def test_every_public_name_is_in_the_reference():
    text = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    modules = ("distributed", "functional", "ops", "optim", "policies")
    missing = [name for name in wk.__all__ if name not in modules and f"wuskern.{name}\n" not in text]
    missing += [f"{module}.{name}" for module in ("optim", "functional") for name in getattr(wk, module).__all__
                if f"wuskern.{module}.{name}\n" not in text and f"wuskern.{name}\n" not in text]  # fmt: skip
    assert missing == []


def test_the_hooks_are_those_of_ci():
    pinned = (ROOT / ".ci" / "requirements.txt").read_text().split()
    hooks = re.findall(r"additional_dependencies: \[(.*?)\]", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks
    assert set(hooks) <= set(pinned)


# ---- HTML -----------------------------------------------------------------------------------------------------------


@pytest.mark.more
def test_sphinx_builds_the_pages_without_a_warning(tmp_path):
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package, reason=f"{package} is not installed: make docs installs it")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", ROOT / "docs", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "methods" / "wus.html").exists()
