"""What is published, and that it is found where it is installed."""

import os
import re
import sys

import pytest
from processes import ROOT, run, run_python

import smm_py

UPKEEP = (".ci/", ".github/", ".clang-format", ".gitignore", ".pre-commit-config.yaml")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder of metadata that a source distribution is made by."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("the sources are elsewhere")
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("metadata")
    done = run_python("setup.py", "-q", "egg_info", "--egg-base", str(folder), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder / "smm_py.egg-info"


def test_sdist_holds_every_file(published):
    tracked = run("git", "ls-files", cwd=ROOT)
    if tracked.returncode:
        pytest.skip("no clone")
    listed = {os.path.normpath(x) for x in (published / "SOURCES.txt").read_text().splitlines()}
    files = [name for name in tracked.stdout.splitlines() if (ROOT / name).exists()]
    assert not [name for name in files if name not in listed and not name.startswith(UPKEEP)]
    ending = (".so", ".o", ".pyc", ".egg")
    built = ("tests/c/bin/", "csrc/build/")
    assert not [name for name in listed if name.endswith(ending) or name.startswith(built)]


def test_description_has_links_for_an_index_page(published):
    text = (published / "PKG-INFO").read_text()
    description = text.partition("\n\n")[2]
    [source] = re.findall(r"^Project-URL: Source, (.*)$", text, re.M)
    targets = re.findall(r"\]\(([^)]*)\)", description)
    assert len(targets) > 10
    for target in targets:
        assert target.startswith(("https://", "#")), target
        if target.startswith(source):
            kind, tag, path = target.removeprefix(source + "/").split("/", 2)
            assert tag == f"v{smm_py.__version__}" and (ROOT / path).exists(), target
            assert (kind == "raw") == path.endswith(".png"), target
    assert "Description-Content-Type: text/markdown" in text


def test_version_is_the_same_in_every_file(published):
    text = (published / "PKG-INFO").read_text()
    assert f"\nVersion: {smm_py.__version__}\n" in text
    assert f"\nversion: {smm_py.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_report_of_a_bug():
    done = run_python("-m", "smm_py", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for told in (
        f"smm_py {smm_py.__version__}",
        "installation: ",
        f"CPython {sys.version.split()[0]}",
        "NumPy ",
        "PyTorch ",
        "system: ",
        "processor: ",
        "chosen: ",
        "OpenMP: ",
        "threads: ",
    ):
        assert told in done.stdout


def test_pytorch_is_missing():
    code = "import sys; sys.modules['torch'] = None; import smm_py.torch"
    done = run_python("-c", code, cwd=ROOT)
    assert "ModuleNotFoundError: smm_py.torch needs PyTorch" in done.stderr
    assert "pip install 'torch>=" in done.stderr


def test_a_folder_of_the_same_name_hides_nothing(tmp_path):
    """An editable installation, seen from the parent folder of a clone that is called smm_py."""
    (tmp_path / "smm_py").mkdir()
    script = tmp_path / "script.py"
    script.write_text("import smm_py\nwidth: int = smm_py.SlotMixture(dim=8, num_slots=2).dim\n")
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}

    def here(*arguments):
        return run_python(*arguments, cwd=tmp_path, env=environment)

    if here("-P", "-c", "import smm_py").returncode:
        pytest.skip("smm_py is not installed")
    done = here("-c", "import smm_py; smm_py.SlotMixture")
    assert done.returncode == 0, done.stderr
    pytest.importorskip("mypy")
    done = here("-m", "mypy", "--strict", "script.py")
    assert done.returncode == 0, done.stdout
