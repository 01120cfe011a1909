"""Speed and memory of the modules beside their peers, in one run: `python -m tests.benchmarks`.

Agreement is checked before anything is timed. Rounds of all contenders are interleaved; medians and
quartiles are reported. docs/benchmarks.md says how operations are counted. Use an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

EXAMPLES = """\
examples, from the repository's root:
  # a first look
  python -m tests.benchmarks --quick
  # two sections, for one shape
  python -m tests.benchmarks --only limit peers --shapes batch
  # everything, on an idle machine, into docs/benchmarks.md
  python -m tests.benchmarks --page
"""
SECTIONS = (
    *("limit", "peers", "sweep", "threads", "small", "warm", "bfloat16", "memory", "step"),
    *("heads", "sklearn", "autocast"),
)
PAGE = Path("docs/benchmarks.md")


def options(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__.split("\n\n")[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="less of everything, without torch.compile: about two minutes",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SECTIONS,
        default=SECTIONS,
        metavar="SECTION",
        help=", ".join(SECTIONS),
    )
    parser.add_argument(
        "--shapes", nargs="+", metavar="SHAPE", help="of limit and peers; default: all five"
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="of everything that is compared with peers (2)"
    )
    parser.add_argument(
        "--device",
        default="cpu",
        help="cuda: the lean form and the peers there, section autocast alone (cpu)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="for each comparison, beside its first three rounds (15; quick: 1.5)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/benchmarks"),
        help="folder for results.json, tables and pictures; --only replaces its own sections",
    )
    parser.add_argument(
        "--replay",
        type=Path,
        metavar="JSON",
        help="tables and pictures of an earlier run, nothing timed",
    )
    parser.add_argument(
        "--page", action="store_true", help=f"put the tables into {PAGE} and the pictures beside it"
    )
    chosen = parser.parse_args(arguments)
    if chosen.threads < 1:
        parser.error(f"--threads must be at least 1, got {chosen.threads}")
    if chosen.device != "cpu":
        import torch

        if not (chosen.device.startswith("cuda") and torch.cuda.is_available()):
            parser.error(f"--device must be cpu, or cuda with a GPU, got {chosen.device}")
        chosen.only = ["autocast"]
    if chosen.page and not PAGE.exists():
        parser.error(f"--page needs {PAGE}: run it from the repository's root")
    chosen.seconds = chosen.seconds or (1.5 if chosen.quick else 15)
    return chosen


def keep_to_cores(count):
    """To be called before a library counts the cores: JAX starts a thread for each."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def measure_all(chosen):
    from . import autocast, estimators, heads, measure, memory, narrow, step, warm
    from .problem import SHAPES

    quick, seconds, threads = chosen.quick, chosen.seconds, chosen.threads
    labels = chosen.shapes or (["batch", "single"] if quick else list(SHAPES))
    unknown = set(labels) - set(SHAPES)
    if unknown:
        raise SystemExit(
            f"--shapes must be of {', '.join(SHAPES)}, got {', '.join(sorted(unknown))}"
        )
    sections = {
        "limit": lambda: measure.limit(labels, threads, seconds),
        "peers": lambda: listed(
            measure.against_peers(labels[:1] if quick else labels, threads, seconds, not quick)
        ),
        "sweep": lambda: listed(
            measure.sweep(measure.QUICK_AXES if quick else measure.AXES, threads, seconds / 5)
        ),
        "threads": lambda: listed(measure.threads_sweep(threads, seconds / 3)),
        "small": lambda: listed(measure.small_calls(0.05 if quick else 0.5)),
        "warm": lambda: listed(warm.frame_by_frame(threads)),
        "bfloat16": lambda: listed(narrow.narrow_inputs(threads, labels, seconds / 5)),
        "memory": lambda: listed(memory.against_inputs(2**14 if quick else 2**20)),
        "step": lambda: step.whole_step(threads, 2 * seconds),
        "heads": lambda: listed(heads.heads(threads, seconds / 3)),
        "autocast": lambda: listed(
            autocast.beside_peers(
                threads, seconds, ["set"] if quick else None, not quick, chosen.device
            )
        ),
        "sklearn": lambda: listed(estimators.beside_sklearn(threads, seconds)),
    }
    names = {"threads": "threads sweep", "small": "small calls"}
    earlier = chosen.out / "results.json"
    results = (
        json.loads(earlier.read_text())
        if earlier.exists() and set(chosen.only) < set(SECTIONS)
        else {}
    )
    results |= {"machine": measure.machine(chosen.device), "threads": threads}
    peaks = [measure.measure_peak()]
    results |= note_peaks(peaks)
    for name in SECTIONS:
        if name in chosen.only and not (quick and name == "step"):
            print(f"{name} ...", file=sys.stderr, flush=True)
            results[names.get(name, name)] = sections[name]()
            save(results, chosen.out)
    peaks.append(measure.measure_peak())
    results |= note_peaks(peaks)
    return results


def note_peaks(peaks):
    return {"peaks": peaks, "peak": None if None in peaks else max(peaks)}


def save(results, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def listed(rows):
    """All rows, with a sign of life for each."""
    found = []
    for row in rows:
        found.append(row)
        where = ", ".join(
            str(row[key])
            for key in ("shape", "axis", "value", "kind", "mode", "name", "N", "inputs")
            if key in row
        )
        print(f"  {where}", file=sys.stderr, flush=True)
    return found


def write_page(text):
    """Replace what stands between the page's two marks."""
    page = PAGE.read_text()
    marked = re.compile("(<!-- results -->\n).*(<!-- end of results -->)", re.S)
    if not marked.search(page):
        raise SystemExit(f"{PAGE} has no marks '<!-- results -->' and '<!-- end of results -->'")
    PAGE.write_text(marked.sub(lambda marks: marks[1] + text + marks[2], page))


def main():
    chosen = options()
    keep_to_cores(chosen.threads)
    from . import plots, report

    if chosen.replay:
        results = json.loads(chosen.replay.read_text())
    else:
        results = measure_all(chosen)
    save(results, chosen.out)
    text = report.markdown(results)
    (chosen.out / "tables.md").write_text(text)
    plots.draw(results, chosen.out)
    print(text)
    if chosen.page:
        write_page(text)
        plots.draw(results, PAGE.parent / "images")


if __name__ == "__main__":
    main()
