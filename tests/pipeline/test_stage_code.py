"""What the code of a stage is: the modules it imports, and of them what Python executes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simple_llama.errors import InputError
from simple_llama.stage_code import EXEMPT_PATHS, LISTINGS, as_stage, list_code
from tests.support.project import ROOT

MODULE = '''"""Head."""

# a comment
LIMIT = 3
"""What it is."""
TEXT = """
# no comment
"""


def f(x: int) -> int:
    """Doc."""
    from package import lazy

    name = f"é#{x}"  # said above
    return lazy.g(x) + len(name) + LIMIT  # said beside
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "stages/one.py": MODULE,
        "package/__init__.py": "",
        "package/lazy.py": "from package.sub.deep import g\n",
        "package/sub/deep.py": "def g(x): return x\n",
        "package/sub/page.jinja": "<p>",
        "package/other.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def files() -> list[str]:
    return [line.split("  ")[1] for line in list_code("stages.one").splitlines()]


def test_it_is_what_is_imported_even_within_a_function_and_what_lies_beside(project: Path) -> None:
    assert files() == [
        "package/__init__.py",
        "package/lazy.py",
        "package/sub/deep.py",
        "package/sub/page.jinja",
        "stages/one.py",
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Head."""', '"""Another\n\nhead."""'),
        ("# a comment", "# other"),
        ("# a comment\n", "\n\n"),
        ('"""What it is."""', ""),
        ('"""Doc."""', '"""Dóc: "x"."""'),
        ("  # said beside", "  # sáid: '"),
        ("  # said beside", ""),
    ],
)
def test_words_do_not_count(project: Path, old: str, new: str) -> None:
    before = list_code("stages.one")
    assert old in MODULE
    Path("stages/one.py").write_text(MODULE.replace(old, new))
    assert list_code("stages.one") == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("é#{x}", "é#x{x}"),
        ("# no comment", "# another"),
        ("\n# no comment", ""),
        ('TEXT = """', 'TEXT = f"""'),
        ("# no comment\n", "# no comment\n\n"),
        ("+ LIMIT  # said", "+ LIMIT + len('é# said')  # said"),
        ('"""Doc."""', '"""Doc."""; x = 1'),
        ('"""What it is."""', 'x = """What it is."""'),
    ],
)
def test_all_else_counts(project: Path, old: str, new: str) -> None:
    before = list_code("stages.one")
    Path("stages/one.py").write_text(MODULE.replace(old, new))
    after = list_code("stages.one")
    assert after != before
    assert after.splitlines()[:-1] == before.splitlines()[:-1], "only this file's line"


def test_a_template_beside_a_module_counts(project: Path) -> None:
    before = list_code("stages.one")
    Path("package/sub/page.jinja").write_text("<b>")
    assert list_code("stages.one") != before
    Path("package/sub/.page.jinja.swp").write_text("an editor's")
    Path("package/sub/._page.jinja").write_text("a file manager's")
    Path("package/sub/.#page.jinja").symlink_to("somebody@nowhere.1")
    Path("package/other.py").write_text("1")
    Path("package/sub/page.jinja").write_text("<p>")
    assert list_code("stages.one") == before


@pytest.mark.parametrize(
    "line",
    ["from .lazy import g", "from . import lazy", "import package.sub", "from .. import package"],
)
def test_relative_imports_and_packages_count(project: Path, line: str) -> None:
    Path("package/sub/__init__.py").write_text("X = 1\n")
    Path("package/other.py").write_text(line)
    Path("stages/one.py").write_text("import package.other\n")
    changed = Path("package/sub/__init__.py" if "sub" in line else "package/lazy.py")
    if line.startswith("from .. "):
        Path("package/sub/one.py").write_text("from ..lazy import g\n")
        Path("package/other.py").write_text("from package.sub import one\n")
    before = list_code("stages.one")
    changed.write_text("X = 2\n")
    assert list_code("stages.one") != before


@pytest.mark.parametrize("content", [b"x = '\xff'\n", b"x = 1\0\n"])
def test_a_module_that_is_no_text_is_named(project: Path, content: bytes) -> None:
    Path("package/lazy.py").write_bytes(content)
    with pytest.raises(InputError, match=r"^package/lazy\.py: "):
        list_code("stages.one")
    Path("package/lazy.py").write_bytes(b"\xef\xbb\xbfx = 1\n")
    assert "package/lazy.py" in list_code("stages.one"), "a byte order mark, as Python reads it"


def test_what_is_missing_or_no_python_is_named(project: Path) -> None:
    with pytest.raises(InputError, match=r"^stages/two\.py: no such file"):
        list_code("stages.two")
    Path("package/lazy.py").write_text("def")
    with pytest.raises(InputError, match=r"^package/lazy\.py: line 1: invalid syntax"):
        list_code("stages.one")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("import package.gone", "package.gone"),
        ("def f():\n    from package.sub.gone import g", "package.sub.gone"),
        ("from package import gone", "package.gone"),
        ("from package.sub import deep, gone", "package.sub.gone"),
        ("from .sub import gone", "package.sub.gone"),
    ],
)
def test_a_deleted_module_that_is_imported_is_named(project: Path, line: str, wanted: str) -> None:
    Path("package/lazy.py").write_text(line)
    place = rf"^package/lazy\.py: line {line.count(chr(10)) + 1}: "
    with pytest.raises(InputError, match=f"{place}imports {wanted}, wanted a module of this "):
        list_code("stages.one")


@pytest.mark.parametrize(
    ("init", "line"),
    [
        ("from package.sub.deep import g as h", "from package import h"),
        ("def h(): pass", "from . import h"),
        ("def __getattr__(name): return name", "from package import h"),
        ("", "from package.sub.deep import h"),
        ("", "from package import *"),
        ("", "import package.sub, yaml, json.decoder"),
        ("", "from data import load"),
    ],
)
def test_what_no_module_has_to_be_is_not(project: Path, init: str, line: str) -> None:
    """A name in a package or a module; a package without __init__.py; an installed one that has the
    name of a folder of data."""
    Path("data").mkdir()
    Path("data/rows.json").touch()
    Path("package/__init__.py").write_text(init)
    Path("package/lazy.py").write_text(line)
    assert "package/lazy.py" in files()


def test_no_garbage_is_looked_for_while_a_stage_imports() -> None:
    code = (
        "import gc, sys; sys.argv = sys.argv[1:]; import stages; during = gc.isenabled()\n"
        "from simple_llama.stage_code import as_stage\n"
        "with as_stage('stages.code'): print(during, gc.isenabled())"
    )
    for name, said in (("-m", "False True\n"), ("pytest", "True True\n")):
        command = [sys.executable, "-c", code, name]
        assert subprocess.check_output(command, cwd=ROOT, text=True) == said


def test_a_stage_that_dvc_runs_stops_where_another_code_is_listed(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def run() -> None:
        with as_stage("stages.one"):
            ran.append("stages.one")

    monkeypatch.setenv("DVC_STAGE", "one")
    run()
    assert len(ran) == 1, "nothing is listed"
    LISTINGS.mkdir(parents=True)
    listing = LISTINGS / "stages.one.txt"
    listing.write_text(list_code("stages.one"))
    Path("stages/one.py").write_text(MODULE.replace("# a comment", "# another"))
    run()
    assert len(ran) == 2, "a comment"
    Path("package/lazy.py").write_text("from package.other import g\n")
    with pytest.raises(SystemExit) as stopped:
        run()
    said = str(stopped.value)
    assert said.startswith(f"error: {listing}: lists other code than this stage runs (package/")
    assert "lazy.py and 3 more), " in said and said.endswith("`dvc repro code` before this stage")
    assert "\n" not in said and len(ran) == 2
    monkeypatch.delenv("DVC_STAGE")
    run()
    assert len(ran) == 3, "by hand"


STAGES = ("prepare", "tokenize", "baseline", "train", "evaluate")
# torch, which is not of this project, is imported once for all of them
IMPORT_EACH = f"""
import importlib, os, sys, torch
for stage in {STAGES}:
    if os.fork() == 0:
        importlib.import_module(f"stages.{{stage}}")
        files = [getattr(m, "__file__", None) or "" for m in list(sys.modules.values())]
        print(stage, *(os.path.relpath(f) for f in files if f.startswith(os.getcwd() + "/s")))
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


def test_python_imports_nothing_that_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = [sys.executable, "-c", IMPORT_EACH]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert tuple(stage for stage, *_ in lines) == STAGES
    # for its check of the whole params.yaml each stage imports what the others read of it
    exempt = (*EXEMPT_PATHS, "simple_llama/params/")
    for stage, *files in lines:
        imported = {file for file in files if not file.startswith(exempt)}
        listed = {line.split("  ")[1] for line in list_code(f"stages.{stage}").splitlines()}
        assert f"stages/{stage}.py" in imported
        assert imported <= listed, stage


@pytest.mark.parametrize(
    ("stage", "owners"),
    [
        ("prepare", {"prepare"}),
        ("tokenize", {"tokenize"}),
        ("baseline", {"base", "evaluate", "execution"}),
        ("train", {"base", "train", "execution"}),
        # its report shows how it was trained
        ("evaluate", {"base", "evaluate", "execution", "train"}),
    ],
)
def test_a_new_param_is_code_of_the_stages_that_read_it_only(
    stage: str, owners: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    listed = [Path(line.split("  ")[1]) for line in list_code(f"stages.{stage}").splitlines()]
    params = {path.stem for path in listed if path.parent == Path("simple_llama/params")}
    assert params == owners | {"__init__", "reading"}


def test_a_copy_elsewhere_has_the_same_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    here = list_code("stages.prepare")
    for folder in ("simple_llama", "stages"):
        shutil.copytree(folder, tmp_path / folder)
    for path in (tmp_path / "stages").glob("*.py"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.chdir(tmp_path)
    assert list_code("stages.prepare") == here, "Windows' line ends are no change"
