"""What the package declares and what the locks hold: every import, every hash, no index."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.structure import packages

ROOT = Path(__file__).parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
HASHED = [path for path in LOCKS if "constraints" not in path.name]
OF_PACKAGES = [path for path in HASHED if path.name != "tools.txt"]
DECLARED = {canonicalize_name(Requirement(line).name): Requirement(line) for line in requires("router-backend") or []}


def imported() -> set[str]:
    """The names of the packages that the product imports, wherever in a file."""
    nodes = [
        node
        for package in ("router_backend", "router_tools")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
    ]
    named = {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
    named |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in named} - sys.stdlib_module_names - {"router_backend", "router_tools"}


def test_every_import_is_declared() -> None:
    distributions = packages()
    undeclared = {
        name: distributions.get(name)
        for name in imported()  # Ray is not among what the tests install
        if not DECLARED.keys() & distributions.get(name, {canonicalize_name(name)})
    }
    assert undeclared == {}
    assert {"fastapi", "torch", "gradio"} <= imported()


def entries(lock: Path) -> list[str]:
    """One text a package: the requirement, its marker and its hashes."""
    text = re.sub(r"^ *#.*\n", "", lock.read_text("utf-8"), flags=re.MULTILINE)
    return [entry for entry in re.split(r"\n(?=\S)", text.strip()) if entry]


@pytest.mark.parametrize("lock", HASHED, ids=lambda path: path.stem)
def test_a_lock_has_every_hash_and_names_no_index(lock: Path) -> None:
    assert [
        entry for entry in entries(lock) if not re.match(r"\S+==\S+ .*--hash=sha256:[0-9a-f]{64}", entry, re.DOTALL)
    ] == []
    assert not re.search(r"https?://|--(extra-)?index|--find-links|file:", lock.read_text("utf-8"))


def test_the_lock_of_the_javascript_clients_has_every_hash_and_names_no_registry() -> None:
    packages = json.loads((ROOT / "tests/clients/package-lock.json").read_text("utf-8"))["packages"]
    locked = {name: each for name, each in packages.items() if name}
    assert {"node_modules/openai", "node_modules/ai", "node_modules/zod"} <= locked.keys()
    assert [name for name, each in locked.items() if not each["integrity"].startswith("sha512-")] == []
    assert [name for name, each in locked.items() if "resolved" in each] == []


@pytest.mark.parametrize("name", ["server", "test", "transformers"])
def test_a_lock_lies_in_the_ranges_of_the_package(name: str) -> None:
    held = [Requirement(entry.partition("\\")[0]) for entry in entries(ROOT / f"requirements/{name}.txt")]
    pinned: dict[str, list[str]] = {}
    for each in held:
        pinned.setdefault(canonicalize_name(each.name), []).extend(one.version for one in each.specifier)
    wrong = [
        f"{each} is locked at {version}"
        for canonical, each in DECLARED.items()
        for version in pinned.get(canonical, [])
        if not each.specifier.contains(version)
    ]
    assert wrong == []
    assert len(pinned.keys() & DECLARED.keys()) >= 18


def test_the_spaces_pins_are_those_of_its_lock() -> None:
    locked = {entry.split()[0] for entry in entries(ROOT / "requirements/space.txt")}
    assert set(entries(ROOT / "requirements.txt")) <= locked


@pytest.mark.parametrize("package", ["router_backend", "router_tools"])
def test_what_is_not_python_is_package_data(package: str) -> None:
    listed = re.search(
        rf"^{package} = (\[.*?\])$", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert listed is not None
    packed = {path for pattern in ast.literal_eval(listed[1]) for path in (ROOT / package).glob(pattern)}
    files = {path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files - packed == set() and packed


def test_the_workflow_is_valid() -> None:
    check = [str(Path(sys.executable).with_name("check-jsonschema")), "--builtin-schema", "vendor.github-workflows"]
    subprocess.run([*check, str(ROOT / ".github/workflows/ci.yml")], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose locks name one package, which a folder beside it holds; but for those of the installer."""
    wheel = tmp_path / "wheels/tiny_package-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    info = "tiny_package-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_package.py", "")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-package\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    for lock in OF_PACKAGES:
        (tmp_path / "requirements" / lock.name).write_text(f"tiny-package==1.0 --hash=sha256:{digest}\n")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/uv").symlink_to(Path(sys.executable).with_name("uv"))
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    return tmp_path


def install(checkout: Path, lock: str = "server.txt") -> subprocess.CompletedProcess[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PYTHON", "VIRTUAL_ENV"))},
        "VENV": str(checkout / "target"),
        "ONLY_LOCKS": "1",
        "UV_CONFIG_FILE": str(checkout / "uv.toml"),
        "UV_CACHE_DIR": str(checkout / "cache"),
    }
    (checkout / "uv.toml").write_text(f"no-index = true\nfind-links = ['{checkout / 'wheels'}']\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment["VENV"]], check=True)
    command = [str(checkout / "requirements/install.sh"), lock]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def test_a_lock_installs_what_it_names(checkout: Path) -> None:
    done = install(checkout)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list((checkout / "target").rglob("tiny_package.py"))


@pytest.mark.parametrize("name", [path.name for path in OF_PACKAGES])
def test_a_changed_hash_is_one_line(checkout: Path, name: str) -> None:
    lock = checkout / "requirements" / name
    text = lock.read_text()
    lock.write_text(text[:-2] + ("0" if text[-2] != "0" else "1") + "\n")
    done = install(checkout, name)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        f"make: the hash of tiny-package==1.0 is not the one in requirements/{name}: restore the file "
        f"(git checkout requirements/{name}), or run make lock if you changed it on purpose\n"
    )


def test_a_package_that_no_index_has_is_one_line(checkout: Path) -> None:
    (checkout / "requirements/server.txt").write_text(f"no-such-package==9 --hash=sha256:{'0' * 64}\n")
    done = install(checkout)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("make: requirements/server.txt cannot be installed: ")
