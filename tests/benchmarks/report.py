"""Results as Markdown tables, for the terminal and for docs/benchmarks.md."""

from __future__ import annotations

import numpy as np

from examples.shared.report import table as table_of

from .autocast import SHAPES as AUTOCAST_SHAPES
from .contenders import LEAN, LEAN_COMPILED, OURS, OURS_TORCH, RECOMPUTE
from .problem import KINDS, SHAPES, Shape, flops

SHORT = {"SlotMixture": "SMM", "SlotAttention": "SA"}


def table(header, rows):
    return table_of(header, rows) + "\n"


def ms(times):
    return f"{1e3 * times['median']:.3g}"


def spread(times):
    return f"{1e3 * times['median']:.3g} ({1e3 * times['low']:.3g} to {1e3 * times['high']:.3g})"


def select(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def fraction(row, times, peak):
    """Of what the threads' measured peak allows; None without a peak."""
    return None if peak is None else row["flops"] / times["median"] / (peak * row["threads"])


def peers_of(row):
    return {
        name: times["median"]
        for name, times in row["time"].items()
        if name not in (OURS, OURS_TORCH, LEAN)
    }


def against_fastest(row):
    """(name of the fastest peer, how many times as long it takes as our PyTorch operator)."""
    peers = peers_of(row)
    fastest = min(peers, key=peers.get)
    return fastest, peers[fastest] / row["time"][OURS_TORCH]["median"]


def at_the_limit(row, peak):
    """Time of the fastest peer over that of the multiply-adds alone, the lower limit of all."""
    forward, backward = flops(row["kind"], SHAPES[row["shape"]], row["mode"].rpartition(" ")[2])
    work = forward + (backward if "backward" in row["mode"] else 0)
    return None if peak is None else min(peers_of(row).values()) * peak * row["threads"] / work


def _share(value):
    return "unknown" if value is None else f"{value:.2f}"


def machine(results):
    facts, peak = results["machine"], results["peak"]
    text = "unknown (no C compiler)"
    if peak is not None:
        both = ", ".join(f"{p / 1e9:.0f}" for p in results["peaks"])
        text = f"{peak / 1e9:.0f} GFLOP/s a thread ({both} before and after)"
    return (
        ", ".join(f"{key} {value}" for key, value in facts.items())
        + f". Peak of fused multiply-adds: {text}.\n"
    )


def limit(results):
    rows = []
    for label in dict.fromkeys(row["shape"] for row in results["limit"]):
        for kind in KINDS:
            for threads in sorted({row["threads"] for row in results["limit"]}):
                case = select(results["limit"], shape=label, kind=kind, threads=threads)
                cells = [
                    f"{spread(r['time'])}: **{_share(fraction(r, r['time'], results['peak']))}**"
                    for r in case
                ]
                rows.append([f"{label}: {SHAPES[label]}", SHORT[kind], threads, *cells])
    return "Time in ms (quartiles): **fraction of the limit**.\n\n" + table(
        ["shape", "", "threads", "forward", "backward, full", "backward, implicit"], rows
    )


def peers(results):
    parts = []
    for kind in KINDS:
        cases = select(results["peers"], kind=kind)
        names = list(dict.fromkeys(name for row in cases for name in row["time"]))
        rows = []
        for row in cases:
            times = row["time"]
            fastest, ratio = against_fastest(row)
            cells = [ms(times[n]) if n in times else "-" for n in names]
            rows.append(
                [
                    row["shape"],
                    row["mode"],
                    *cells,
                    f"{times[OURS_TORCH]['low'] * 1e3:.3g} to "
                    f"{times[OURS_TORCH]['high'] * 1e3:.3g}",
                    f"**{ratio:.1f}** ({fastest})",
                    _share(at_the_limit(row, results["peak"])),
                    f"{max(row['errors'][name] for name in times):.0e}",
                ]
            )
        if rows:
            parts.append(
                f"{kind}, {cases[0]['threads']} threads, ms:\n\n"
                + table(
                    [
                        "shape",
                        "",
                        *names,
                        f"quartiles of {OURS_TORCH}",
                        "fastest peer / ours",
                        "fastest peer / limit",
                        "largest error",
                    ],
                    rows,
                )
            )
    absent = dict.fromkeys(
        f"{name}: {why}" for row in results["peers"] for name, why in row["absent"].items()
    )
    return (
        "\n".join(parts)
        + "".join(f"\nNot run: {line}." for line in absent)
        + ("\n" if absent else "")
    )


def growth(results):
    """How far from proportional to N the time is above 10^4 inputs."""
    parts = []
    for backward, what in ((False, "forward"), (True, "forward + backward, full")):
        rows = [
            r for r in select(results["sweep"], axis="N", backward=backward) if r["value"] >= 10_000
        ]
        for name in (OURS, RECOMPUTE):
            each = np.array(
                [r["time"][name]["median"] / r["value"] for r in rows if name in r["time"]]
            )
            if len(each) > 1:
                parts.append(
                    f"{name}: time for each input, {what}, "
                    f"N = {rows[0]['value']} to {rows[-1]['value']}: "
                    f"{1e6 * each.min():.3g} to {1e6 * each.max():.3g} us, "
                    f"{100 * (each.max() / each.min() - 1):.0f} % apart.\n"
                )
    return "\n".join(parts)


def threads(results):
    rows = []
    for label, kind, mode in dict.fromkeys(
        (r["shape"], r["kind"], r["mode"]) for r in results["threads sweep"]
    ):
        case = select(results["threads sweep"], shape=label, kind=kind, mode=mode)
        one = case[0]["time"]["median"]
        rows.append(
            [
                label,
                SHORT[kind],
                mode,
                *(f"{ms(r['time'])} ({one / r['time']['median']:.2f}x)" for r in case),
            ]
        )
    counts = dict.fromkeys(r["threads"] for r in results["threads sweep"])
    return table(["shape", "", "ms"] + [f"{n} thread{'s' * (n > 1)}" for n in counts], rows)


def small_calls(results):
    names = list(dict.fromkeys(name for row in results["small calls"] for name in row["time"]))
    rows = [
        [
            Shape(*row["shape"]),
            SHORT[row["kind"]],
            row["threads"],
            *(f"{1e6 * row['time'][n]['median']:.3g}" if n in row["time"] else "-" for n in names),
        ]
        for row in results["small calls"]
    ]
    return "Forward, us:\n\n" + table(["shape", "", "threads", *names], rows)


def warm(results):
    rows = []
    for name in dict.fromkeys(row["kind"] for row in results["warm"]):
        cold, kept = (select(results["warm"], kind=name, warm=w)[0] for w in (False, True))
        rows.append(
            [
                name,
                *(f"{r['steps']:.1f} steps, {1e3 * r['seconds']:.3g} ms" for r in (cold, kept)),
                f"{cold['seconds'] / kept['seconds']:.1f}",
            ]
        )
    first = results["warm"][0]
    return (
        "A frame of N=1024 D=64 K=7, centres drifting, "
        f"tol {first['tol']}, at most {first['most']} steps:\n\n"
        + table(["", "each frame afresh", "from the last frame's slots", "times as fast"], rows)
    )


def bfloat16(results):
    rows = []
    for label, kind in dict.fromkeys((r["shape"], r["kind"]) for r in results["bfloat16"]):
        case = [
            select(results["bfloat16"], shape=label, kind=kind, inputs=inputs)[0]
            for inputs in ("float32", "bfloat16")
        ]
        rows.append(
            [
                label,
                SHORT[kind],
                *(f"{r['errors'][key]:.0e}" for key in ("slots", "dx") for r in case),
                *(ms(r["time"]) for r in case),
                *(f"{r['mib']:.3g}" for r in case),
            ]
        )
    return (
        "Relative error (L2 norm) against float64; forward + backward, implicit, ms; size of x:\n\n"
        + table(
            [
                "shape",
                "",
                *(
                    f"{what}, {inputs}"
                    for what in ("error of slots", "of dx", "ms", "MiB")
                    for inputs in ("float32", "bfloat16")
                ),
            ],
            rows,
        )
    )


def memory(results):
    rows = results["memory"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    cells = {(row["name"], row["N"]): f"{row['bytes'] / 2**20:.1f}" for row in rows}
    return (
        "SMM, B=1 K=11 D=64 T=3, forward + backward, "
        "MiB beyond inputs, parameters, slots and gradients:\n\n"
        + table(
            ["N", *names],
            [
                [n, *(cells.get((name, n), "-") for name in names)]
                for n in sorted({row["N"] for row in rows})
            ],
        )
    )


def step(results):
    found = results["step"]
    ours = found["time"]["smm_py"]["median"]
    words = {
        "smm_py": f"smm_py, convolutions in {found['precision']}",
        "plain": "plain PyTorch: SMM in expanded form, float32, nothing tuned",
        "released": "the released module in plain PyTorch",
    }
    rows = [
        [words[name], spread(times), f"{times['median'] / ours:.1f}"]
        for name, times in found["time"].items()
    ]
    parts = [[name, f"{100 * share:.1f} %"] for name, share in found["parts"].items()]
    return (
        f"B={found['batch']}, 128 x 128, {found['threads']} threads, ms:\n\n"
        + table(["", "step (quartiles)", "/ ours"], rows)
        + "\nOf our step, by PyTorch's profiler:\n\n"
        + table(["part", "share"], parts)
    )


def autocast(results):
    rows, wrong = [], []
    for row in results["autocast"]:
        times = {name: taken["median"] for name, taken in row["time"].items()}
        mine = [OURS_TORCH] if OURS_TORCH in times else [LEAN, LEAN_COMPILED]
        ours = [min(times[n + suffix] for n in mine if n in times) for suffix in ("", ", bfloat16")]
        others = {name: t for name, t in times.items() if not name.startswith("smm_py")}
        single = min(t for name, t in others.items() if "bfloat16" not in name)
        fastest = min(others, key=others.get)
        parts = [_share(limit / t) for limit, t in zip(row["limit"] or (), ours)]
        rows.append(
            [
                f"{row['shape']}, {SHORT[row['kind']]}, {row['mode']}",
                f"{1e3 * ours[0]:.3g}",
                f"{single / ours[0]:.2f}",
                f"{1e3 * ours[1]:.3g}",
                f"{others[fastest] / ours[1]:.2f}",
                fastest.removeprefix("PyTorch "),
                *(parts or ("unknown", "unknown")),
            ]
        )
        if row["mode"] == "step":
            cells = [f"{row['shape']}, {SHORT[row['kind']]}"]
            for key in ("slots", "dx", "parameters"):
                narrow = {n: e[key] for n, e in row["errors"].items() if "bfloat16" in n}
                best = min(e for n, e in narrow.items() if not n.startswith("smm_py"))
                cells.append(f"{narrow[mine[0] + ', bfloat16']:.1e}, {best:.1e}")
            wrong.append(cells)
    shapes = "; ".join(f"{name}: {shape}" for name, shape in AUTOCAST_SHAPES.items())
    header = ["", "float32, ms", "fastest float32 peer / ours", "autocast, ms"]
    header += ["fastest peer / ours", "which", "of the limit, float32", "autocast"]
    return (
        f"{shapes}. Gradient implicit; peers eager and compiled, in float32 and under autocast:\n\n"
        + table(header, rows)
        + "\nError under autocast relative to float64 (L2 norm), ours and the peers' least:\n\n"
        + table(["", "slots", "dx", "parameters"], wrong)
    )


def heads(results):
    alone = [row for row in results["heads"] if "work" in row]
    rows = []
    for row in alone:
        times = [taken["median"] for taken in row["time"].values()]
        more = [f"{t / times[0]:.2f} ({w:.1f})" for t, w in zip(times[1:], row["work"][1:])]
        rows.append([row["name"], ms(row["time"]["1"]), *more])
    counts = [f"{count} heads" for count in list(alone[0]["time"])[1:]]
    text = (
        "Time of one head (ms), and of several beside it; in brackets, the multiplications of an\n"
    )
    text += f"input beside its:\n\n{table(['', '1 head', *counts], rows)}"
    for row in results["heads"]:
        if "work" not in row:
            ours = row["time"]["smm_py"]["median"]
            cells = [[n, ms(t), f"{t['median'] / ours:.1f}"] for n, t in row["time"].items()]
            text += f"\n{row['name']}:\n\n{table(['', 'ms', 'times ours'], cells)}"
    return text


def beside_sklearn(results):
    def pair(row):
        return [ms(row["time"]["scikit-learn"]), ms(row["time"]["smm_py"])]

    def ratio(row):
        theirs, ours = (row["time"][name]["median"] for name in ("scikit-learn", "smm_py"))
        return f"{theirs / ours:.1f}"

    found = results["sklearn"]
    threads = found[0]["threads"]
    by_way = {way: [] for way in ("steps", "whole", "k-means")}
    for row in found:
        size = [" ".join(f"{n}={v}" for n, v in zip("NDK", row["N"])), row["dtype"]]
        cells = [*size, *pair(row), f"**{ratio(row)}**"]
        steps = list(row["steps"].values())
        shown = str(steps[0]) if steps[0] == steps[1] else f"{steps[1]}, {steps[0]}"
        if "difference" in row:
            cells.append(f"{row['difference']:.0e}")
        by_way[row["kind"]].append([*cells, shown])
    header = ["shape", "dtype", "scikit-learn", "smm_py", "times as fast"]
    first = (
        "`fit` of a diagonal Gaussian mixture from one start, "
        f"{found[0]['steps']['smm_py']} steps, "
        + ("1 thread, ms of processor time; " if threads == 1 else f"{threads} threads, ms; ")
        + "difference of the mean log-likelihoods:"
    )
    parts = (
        (first, [*header, "difference", "steps"], "steps"),
        (
            "The same by default (K-Means of scikit-learn first, in both), with `tol=1e-4`:",
            [*header, "difference", "steps"],
            "whole",
        ),
        (
            "K-Means from one start, soft with `scale=1` and scikit-learn's (Lloyd); steps of "
            "scikit-learn and ours where they differ:",
            [*header, "steps"],
            "k-means",
        ),
    )
    return "\n".join(f"{text}\n\n{table(head, by_way[way])}" for text, head, way in parts)


SECTIONS = {
    "limit": ("Fraction of the limit", limit),
    "peers": ("Against the peers", peers),
    "sweep": ("Growth with N", growth),
    "threads sweep": ("Threads", threads),
    "small calls": ("Small calls", small_calls),
    "warm": ("Video", warm),
    "bfloat16": ("Inputs in bfloat16", bfloat16),
    "memory": ("Memory", memory),
    "step": ("A whole training step", step),
    "heads": ("Heads of Slot Attention", heads),
    "autocast": ("Under autocast", autocast),
    "sklearn": ("Beside scikit-learn", beside_sklearn),
}


def markdown(results):
    parts = [machine(results)]
    parts += [
        f"### {title}\n\n{section(results)}"
        for key, (title, section) in SECTIONS.items()
        if results.get(key)
    ]
    return "\n".join(parts)
