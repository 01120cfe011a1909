"""libsmm as others install it: what it exports, programs on it in C and C++, a trained module."""

import fcntl
import os
import re
import shutil
from pathlib import Path

import numpy as np
import processes
import pytest
from cases import CASES, build, inputs
from reliability.mutations import mutate

import smm_py

ROOT = Path(__file__).resolve().parents[1]
CSRC, EXAMPLES = ROOT / "csrc", ROOT / "examples" / "c"
CC = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(
    not (CC and shutil.which("make")), reason="needs a C compiler and make"
)
COMPILERS = [c for c in dict.fromkeys([CC, "gcc", "clang"]) if c and shutil.which(c)]
COMPILERS_CPP = [c for c in ("g++", "clang++") if shutil.which(c)]
STRICT = "-Wall -Wextra -Werror -pedantic".split()
NUMBERS = ("SMM_VERSION", "SMM_ABI")
LEARNED = [n for n, case in CASES.items() if case[0] in (smm_py.SlotAttention, smm_py.SlotMixture)]


def needs(*programs):
    missing = [p for p in programs if not shutil.which(p)]
    return pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing)}")


def run(*command, **options):
    done = processes.run(*command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def prefix(tmp_path_factory):
    """Where libsmm is installed: one folder for all workers of pytest-xdist, the first builds."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    options = [f"CC={CC}", "CFLAGS=-O1", f"BUILD={folder}/build", f"PREFIX={folder}/libsmm"]
    with open(folder / "libsmm.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run("make", "-s", "-j2", "-C", CSRC, "install", *options)
    return folder / "libsmm"


@pytest.fixture(scope="session")
def environment(prefix):
    """That in which programs find it."""
    found = {"PKG_CONFIG_PATH": prefix / "lib/pkgconfig", "LD_LIBRARY_PATH": prefix / "lib"}
    return {**os.environ, **{name: str(path) for name, path in found.items()}}


def beside(prefix):
    """What the static library is linked with."""
    text = (prefix / "lib/pkgconfig/smm.pc").read_text()
    return re.search(r"Libs\.private: (.*)", text)[1].split()


def preprocessed(*flags):
    return run(CC, "-E", "-P", *flags, CSRC / "include" / "smm.h")


def declared():
    """The functions of the header; all have the macro."""
    text = preprocessed("-DSMM_API=EXPORTED")
    exported = set(re.findall(r"EXPORTED\b[^;(]*?(\w+)\(", text))
    assert exported == set(re.findall(r"\b(smm_\w+)\(", text)) and len(exported) > 20
    return exported


def defined(library, *flags):
    """The names that a library defines for others."""
    lines = run("nm", "-P", "--defined-only", *flags, library).splitlines()
    return {line.split()[0] for line in lines if len(line.split()) > 2}


@needs("nm")
def test_exported_names(prefix):
    assert defined(prefix / "lib/libsmm.so", "-D") == declared()
    assert defined(prefix / "lib/libsmm.a", "-g") == declared()


@needs("pkg-config", "readelf")
def test_versions(prefix, environment):
    """The header's, of the soname, of pkg-config, of the extension."""
    text = (CSRC / "include" / "smm.h").read_text()
    version, abi = (re.search(f'^#define {n} "?([^"\n]*)', text, re.M)[1] for n in NUMBERS)
    assert version == smm_py.__version__
    assert run("pkg-config", "--modversion", "smm", env=environment).strip() == version
    assert f"[libsmm.so.{abi}]" in run("readelf", "-d", prefix / "lib/libsmm.so")


def test_macros_of_the_header():
    """Only SMM_ ones are left, beside those of its three standard headers."""
    standard = "#include <float.h>\n#include <stddef.h>\n#include <stdint.h>\n"
    command = [CC, "-std=c99", "-dM", "-E", f"-I{CSRC / 'include'}", "-xc", "/dev/stdin"]

    def macros(text):
        lines = run("sh", "-c", 'printf "%s" "$0" | "$@"', text, *command).splitlines()
        return {re.match(r"#define (\w+)", line)[1] for line in lines}

    own = macros(standard + '#include "smm.h"\n') - macros(standard)
    assert own and not [name for name in own if not name.startswith("SMM_")]


PROGRAM = """
#define real double
#include "smm.h"
#include <string.h>
int main(void) {
    real rows[4] = {0, 1, 4, 5}, means[2] = {0, 5}, slots[2];
    smm_config config;
    smm_dims dims;
    smm_inputs_f64 in;
    smm_outputs_f64 out;
    smm_config_init(&config, SMM_KMEANS, 1);
    memset(&in, 0, sizeof in), memset(&out, 0, sizeof out);
    dims.batch = 1, dims.inputs = 4, dims.slots = 2, dims.iters = 9;
    config.scale = 100, in.x = rows, in.mean = means, out.slots = slots;
    if (strcmp(smm_version(), SMM_VERSION)) return 1;
    if (smm_forward_f64(&config, &dims, 0, &in, &out, 0, 0) != SMM_OK) return 2;
    return slots[0] < 0.4 || slots[0] > 0.6 || slots[1] < 4.4 || slots[1] > 4.6;
}
"""


@pytest.mark.parametrize("standard", ["c99", "c11", "c++11", "c++17"])
def test_standards(prefix, environment, tmp_path, standard):
    """A program in each, by each compiler, without a warning, on either library."""
    source = tmp_path / ("main.cpp" if "+" in standard else "main.c")
    source.write_text(PROGRAM)
    flags = [f"-std={standard}", *STRICT, source, f"-I{prefix / 'include'}"]
    for i, compiler in enumerate(COMPILERS_CPP if "+" in standard else COMPILERS):
        run(compiler, *flags, f"-L{prefix / 'lib'}", "-lsmm", "-o", tmp_path / f"shared{i}")
        run(tmp_path / f"shared{i}", env=environment)
    library = prefix / "lib/libsmm.a"
    if "+" not in standard:
        run(CC, *flags, library, *beside(prefix), "-o", tmp_path / "static")
        run(tmp_path / "static")


def check_programs(folder, environment=None):
    """What the examples print."""
    lines = run(folder / "cluster", env=environment).splitlines()
    assert [round(float(line[12:17])) for line in lines[:3]] == [-3, 0, 3]
    assert all("share 0.33" in line for line in lines[:3]) and "slot mixture: ok" in lines[4]
    lines = run(folder / "kmeans", env=environment).splitlines()
    assert lines == ["centre (0.33, 0.33)", "centre (5.33, 5.33)"]


@needs("pkg-config", "g++")
def test_examples_by_pkg_config(environment, tmp_path):
    folder = shutil.copytree(EXAMPLES, tmp_path / "examples")
    run("make", "-s", "-C", folder, f"CC={CC}", f"CFLAGS={' '.join(STRICT)}", env=environment)
    check_programs(folder, environment)


def cmake_options(**values):
    return [f"-DCMAKE_{name}={value}" for name, value in values.items()]


@needs("cmake", "g++")
@pytest.mark.parametrize("target", ["smm::smm", "smm::static"])
def test_examples_by_cmake(prefix, tmp_path, target):
    folder = shutil.copytree(EXAMPLES, tmp_path / "examples")
    lists = folder / "CMakeLists.txt"
    lists.write_text(lists.read_text().replace("smm::smm", target))
    strict = " ".join(STRICT)
    options = {"PREFIX_PATH": prefix, "C_COMPILER": CC, "C_FLAGS": strict, "CXX_FLAGS": strict}
    run("cmake", "-S", folder, "-B", tmp_path, *cmake_options(**options))
    run("cmake", "--build", tmp_path)
    check_programs(tmp_path)


@needs("cmake", "nm")
def test_built_by_cmake(prefix, tmp_path):
    """CMake installs the same files, which export the same names."""
    other = tmp_path / "prefix"
    options = {"INSTALL_PREFIX": other, "INSTALL_LIBDIR": "lib", "C_COMPILER": CC}
    quick = cmake_options(**options, BUILD_TYPE="Debug", C_FLAGS="-g0")
    run("cmake", "-S", CSRC, "-B", tmp_path / "build", *quick)
    run("cmake", "--build", tmp_path / "build", "-j2")
    run("cmake", "--install", tmp_path / "build")
    files = [{path.relative_to(f) for path in f.rglob("*")} for f in (prefix, other)]
    assert files[0] == files[1]
    assert defined(other / "lib/libsmm.so", "-D") == declared()
    assert defined(other / "lib/libsmm.a", "-g") == declared()
    texts = [f.joinpath("lib/pkgconfig/smm.pc").read_text() for f in (prefix, other)]
    assert texts[0] == texts[1].replace(str(other), str(prefix))


@needs("pkg-config")
def test_readme(environment, tmp_path):
    """README's program, by README's command."""
    section = (ROOT / "README.md").read_text().split("### C\n")[1].split("\n## ")[0]
    (tmp_path / "main.c").write_text(re.search(r"```c\n(.*?)```", section, re.S)[1])
    command = re.search(r"^cc .*$", section, re.M)[0]
    run("sh", "-c", command, cwd=tmp_path, env=environment)
    lines = run(tmp_path / "main", env=environment).splitlines()
    assert len(lines) == 3 and all("share 0.33" in line for line in lines)


# -- a trained module -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def trained(prefix, tmp_path_factory):
    """The program that runs one, which ends with status 99 where a sanitizer finds something."""
    program = tmp_path_factory.mktemp("trained") / "trained"
    sources = [EXAMPLES / "trained.c", EXAMPLES / "safetensors.c"]
    flags = ["-std=c99", "-g", *STRICT, "-Wconversion", "-Wshadow", f"-I{prefix / 'include'}"]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    library = prefix / "lib/libsmm.a"
    run(CC, *flags, *sanitize, *sources, library, *beside(prefix), "-o", program)
    options = {"ASAN_OPTIONS": "exitcode=99", "UBSAN_OPTIONS": "exitcode=99"}
    environment = {**os.environ, **options}
    environment.pop("LD_PRELOAD", None)

    def call(*arguments):
        done = processes.run(program, *arguments, env=environment)
        assert done.returncode in (0, 1), done.stderr
        assert done.returncode == 0 or done.stderr.startswith("trained: "), done.stderr
        return done

    return call


def slots_of(done):
    assert done.returncode == 0, done.stderr
    return np.array([line.split() for line in done.stdout.splitlines()], "float32")


def write_state(path, state):
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({n: np.ascontiguousarray(a) for n, a in state.items()}, path)


@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("name", LEARNED)
def test_numbers_of_a_trained_module(trained, tmp_path, name, indices):
    """The same bits as Python's, for every option of tests/cases.py."""
    module = build(name, dtype="float32")
    if indices and module._spec.qkv_dim != module.dim:
        pytest.skip("slots cannot start at values of another width")
    x, call = inputs(module, 1, indices=indices)
    module.save(tmp_path / "module.safetensors")
    x.tofile(tmp_path / "x.bin")
    write_state(tmp_path / "init.safetensors", call["init"])
    files = [tmp_path / name for name in ("module.safetensors", "x.bin", "init.safetensors")]
    done = trained(*files[:2], "--state", files[2])
    assert np.array_equal(slots_of(done), module(x, **call).slots[0])


@pytest.mark.parametrize("start", ["gaussian", "inputs"])
def test_start_of_a_trained_module(trained, tmp_path, start):
    """Without a state: at inputs spread evenly, or at the Gaussian's means where it is narrow."""
    module = smm_py.SlotMixture(dim=8, num_slots=3, start=start)
    rng = np.random.default_rng(0)
    means = rng.standard_normal((3, 8)).astype("float32")
    narrow = np.full(8, -200, "float32")
    module.parameters.update(mean_mu=means, mean_logsigma=narrow, logstd_logsigma=narrow)
    x = rng.standard_normal((1, 20, 8)).astype("float32")
    init = {"log_std": np.zeros((1, 3, 8), "float32")}
    init |= {"mean": means[None]} if start == "gaussian" else {"indices": np.array([[0, 6, 13]])}
    module.save(tmp_path / "module.safetensors")
    x.tofile(tmp_path / "x.bin")
    done = trained(tmp_path / "module.safetensors", tmp_path / "x.bin", "--steps", "2")
    assert np.array_equal(slots_of(done), module(x, init=init, num_iters=2).slots[0])


@pytest.mark.parametrize("model", ["sa", "smm"])
@pytest.mark.parametrize("variant", ["stable", "paper"])
def test_weights_of_a_run(trained, tmp_path, model, variant):
    """The slot module within a pipeline's model, with the options of its run."""
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    from examples.set_prediction.config import Config
    from examples.set_prediction.model import SetPredictor

    torch.manual_seed(3)
    config = Config.from_preset("tiny", model=model, variant=variant, dim=8, hidden=12)
    weights = {n: v.contiguous() for n, v in SetPredictor(config).state_dict().items()}
    path = tmp_path / "model.safetensors"
    safetensors.save_file(weights, path, {"config": config.without_places()})
    module = {"sa": smm_py.SlotAttention, "smm": smm_py.SlotMixture}[model].load(path)
    x, call = inputs(module, 1, slots=config.slots)
    x.tofile(tmp_path / "x.bin")
    write_state(tmp_path / "init.safetensors", call["init"])
    done = trained(path, tmp_path / "x.bin", "--state", tmp_path / "init.safetensors")
    assert np.array_equal(slots_of(done), module(x, **call).slots[0])


def reworded(text, rng):
    """The text with one letter or digit replaced by another."""
    text = bytearray(text)
    places = [i for i, c in enumerate(text) if chr(c).isalnum()]
    at = places[rng.integers(len(places))]
    letters = b"0123456789" if chr(text[at]).isdigit() else b"abcdefghijklmnopqrstuvwxyz"
    text[at] = letters[rng.integers(len(letters))]
    return bytes(text)


def test_damaged_files(trained, tmp_path):
    """Any bytes give slots or an error, and no sanitizer finds anything; cut ones an error."""
    module = smm_py.SlotMixture(dim=4, hidden_dim=4, num_slots=2)
    x, call = inputs(module, 1, 6, slots=2)
    x.tofile(tmp_path / "x.bin")
    good, init, bad = (tmp_path / f"{n}.safetensors" for n in ("good", "init", "bad"))
    module.save(good)
    write_state(init, call["init"])
    rng = np.random.default_rng(0)
    messages = []
    for i in range(160):
        original, arguments = (init, (good, "--state", bad)) if i % 8 > 5 else (good, (bad,))
        content = original.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header, data = content[8 : 8 + length], content[8 + length :]
        if i % 4 == 0:
            bad.write_bytes(mutate(content, rng))
        else:  # the header alone, whose length is right; in most files still JSON, as a name,
            # a number or a word has another letter or digit
            header = mutate(header, rng) if i % 4 == 1 else reworded(header, rng)
            bad.write_bytes(len(header).to_bytes(8, "little") + header + data)
        messages.append(trained(*arguments, tmp_path / "x.bin").stderr)
    assert "" in messages and len(set(messages)) > 12
    content = good.read_bytes()
    for end in (0, 7, 8, 100, len(content) - 1):
        bad.write_bytes(content[:end])
        assert trained(bad, tmp_path / "x.bin").returncode == 1


ARRAY = b'"dtype":"F32","shape":[%s],"data_offsets":[0,%d]}'
HEADERS = {  # and what is said of them
    "deep": (b"[" * 100_000, "no object of JSON"),
    "not an object": (b"[1, 2]", "no object of JSON"),
    "twice": (b'{"a":{%s,"\\u0061":{%s}' % ((ARRAY % (b"0", 0),) * 2), "a name stands twice"),
    "overflow": (b'{"a":{%s}' % (ARRAY % (b"4611686018427387904,4", 0)), "larger than any file"),
    "beyond": (b'{"a":{%s}' % (ARRAY % (b"1", 4)), "outside of the file"),
    "no options": (b'{"a":{%s}' % (ARRAY % (b"0", 0)), "does not tell the module's options"),
    "surrogate": (b'{"\\ud800":{%s}' % (ARRAY % (b"0", 0)), "a name is no text"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers(trained, tmp_path, name):
    path = tmp_path / "bad.safetensors"
    header, message = HEADERS[name]
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    done = trained(path, "/dev/null")
    assert done.returncode == 1 and message in done.stderr


def test_options_that_are_refused(trained, tmp_path):
    """Another dtype, an option of another version, one out of its range."""
    path = tmp_path / "module.safetensors"
    smm_py.SlotMixture(dim=4).save(path)
    content = path.read_bytes()
    for old, new, message in (
        (b"float32", b"float64", "dtype must be float32"),
        (b"uniform", b"uniforn", "prior has a value that is unknown"),
        (b"norm_eps", b"norm_epz", "norm_epz is unknown"),
        (b'recompute\\": false', b'recompute\\": 12345', "recompute is unknown"),
    ):
        assert old in content, old
        path.write_bytes(content.replace(old, new))
        done = trained(path, "/dev/null")
        assert done.returncode == 1 and message in done.stderr, done.stderr
