"""The table and the figure of what was measured; nothing in them is typed by hand."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

_LIMITS = {2: 1.25, 10: 1.25, 100: 1.35, 1000: 1.5}
_MEMORY = {True: 2.5, False: 2.0}
"""Bars for temporaries, of nets with and without convolutions."""
_CONVOLUTIONAL = ("cnn", "wide", "resnet18")
_COMPILE, _SINGLE, _DOUBLE = 4.0, 1e-5, 1e-11
_SMOOTHED = "jax: fused, smoothed norm"
NETS = {
    "mlp": "MLP",
    "narrow": "narrow MLP",
    "cnn": "paper's CNN",
    "wide": "wide CNN",
    "resnet18": "ResNet18",
    "resnet32": "ResNet-32, batch norm",
    "transformer": "transformer",
    "lstm": "LSTM",
}
_COLORS = {
    "jax: fused": "#0072B2",
    "jax: known labels": "#56B4E9",
    "jax: masked": "#999999",
    "torch: class loop": "#D55E00",
    "torch: torch.func vmap": "#CC79A7",
    "torch: torchjd autojac": "#E69F00",
    "torch: torchjd autogram": "#009E73",
}
_MARKERS = dict(zip(_COLORS, "os^DvPX", strict=True))


def draw(results: dict[str, Any], folder: Path) -> None:
    """Writes `gradients.md` and `gradients.png`.

    Args:
      results: What `benchmarks.gradients` measured.
      folder: Where to write.
    """
    nets = list(NETS)
    records = sorted(
        results["cases"].values(), key=lambda record: nets.index(record["case"]["net"])
    )
    versions: dict[str, str] = {}
    for record in records:
        versions |= record["versions"]
    dates, machines = (
        " and ".join(sorted({record[name] for record in records}))
        for name in ("date", "machine")
    )
    cores = results.get("cores", [0])
    on = "one core" if len(cores) == 1 else f"{len(cores)} cores"
    options = "" if len(cores) == 1 else f" --cores {' '.join(map(str, cores))}"
    lines = [
        "# What a balanced gradient costs",
        "",
        f"`python -m benchmarks.gradients{options}`, {dates}, {on} of {machines}, "
        f"Python {results['python']}, "
        + ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        + ".",
        "",
        "![Time of each method, relative to the plain gradient](gradients.png)",
        "",
        "Every method was called twice a round, in turn with all others; the second",
        "call counted. *Ratio*: the median over rounds of its time over that of the",
        "plain gradient of the mean loss in the same library and round, with the 10 %",
        "and 90 % quantiles. *fused* is `pcn_value_and_grad`, also asked for the inner",
        "products of all classes (*Gramian*), and with the *smoothed norm*, by halves",
        "of the classes; *known labels* the class gradients taken class by class where",
        "labels are known when tracing; *masked* the textbook way. *Temporaries*: what",
        "the compiled program allocates besides its arguments and results. *Errors*:",
        "of the direction, against a loop over the classes in the same library and",
        "precision, relative to its largest entry (on ResNet18 in JAX of a batch of",
        "8). Milliseconds are to be compared within a row: the machine was another, or",
        "not as fast, on other days. *Peers* are the methods in PyTorch. What is empty",
        "was not measured.",
        "",
        "*Memory kept*: by itself glibc's malloc gives back what is more than 32 MB,",
        "and XLA on CPU takes the temporaries of every call from it anew, page by",
        "page. So all processes ran with `MALLOC_ARENA_MAX=1`, `MALLOC_MMAP_MAX_=0`,",
        "and `MALLOC_TRIM_THRESHOLD_=4294967296`, which make such programs of JAX",
        "faster, plain ones too (`--no-keep-memory` measures without). Rows without",
        "these words are from before that; of theirs only ResNet18 needs so much.",
        "",
        "Nets for images of 32 x 32: the MLP has layers of 512 and 256, the narrow one",
        "of 32 and 32, the paper's CNN of 16 and 32 channels, the wide one of 32, 64",
        "and 128. The transformer has four blocks of width 64 in one scanned layer, on",
        "64 patches; the LSTM 128 units, on 32 rows, and no peers, since PyTorch's has",
        "another bias. The figure is of the smaller batch; a mark is the geometric",
        "mean of balanced and long-tailed labels, and the bar behind it goes from the",
        "one to the other. What has no mark was not run.",
        "",
        "## The fused path against its bars",
        "",
        "The bars: 1.25 times the plain gradient up to 10 classes, 1.35 at 100, 1.5 at",
        "1000; temporaries twice those of the plain gradient (2.5 times for nets with",
        "convolutions); compile time four times; errors 1e-5 in float32 and 1e-11 in",
        "float64; ratio and milliseconds no larger than the best peer's. Temporaries",
        "and compile time in this table are multiples of the plain gradient's.",
        "**Bold**: missed.",
        "",
        "| net | batch | classes | labels | ratio | smoothed norm | best peer | ms "
        "| best peer | temporaries | compile | error, float32 | float64 |",
        "| --- | --: | --: | --- " + "| --: " * 9 + "|",
        *map(_summary, records),
        "",
        "## Every method",
    ]
    for record in records:
        lines += ["", *_details(record)]
    (folder / "gradients.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _figure(records, folder / "gradients.png")


def _ratios(record: dict[str, Any], name: str) -> np.ndarray:
    """Time over that of the plain gradient of the same library, of each round."""
    methods = record["methods"]
    plain = methods[name.split(":", maxsplit=1)[0] + ": plain"]["ms"]
    times = methods[name]["ms"]
    rounds = min(len(plain), len(times))  # slow methods take part in fewer
    ratios: np.ndarray = np.array(times[:rounds]) / np.array(plain[:rounds])
    return ratios


def _summary(record: dict[str, Any]) -> str:
    case, methods = record["case"], record["methods"]
    fused, plain = methods["jax: fused"], methods["jax: plain"]
    ratio = float(np.median(_ratios(record, "jax: fused")))
    time, smoothed = float(np.median(fused["ms"])), float("nan")
    if _SMOOTHED in methods:
        smoothed = float(np.median(_ratios(record, _SMOOTHED)))
    peers = [
        name
        for name, facts in methods.items()
        if name.startswith("torch") and name != "torch: plain" and facts["ms"]
    ]
    best_ratio, best_time = (
        min(map(measured, peers), default=float("nan"))
        for measured in (
            lambda name: float(np.median(_ratios(record, name))),
            lambda name: float(np.median(methods[name]["ms"])),
        )
    )
    memory = fused["temporary_mb"] / plain["temporary_mb"]
    compiled = fused["compile_s"] / plain["compile_s"]
    limit = next(
        bar for number, bar in _LIMITS.items() if case["num_classes"] <= number
    )
    cells = [
        NETS[case["net"]],
        str(case["batch_size"]),
        str(case["num_classes"]),
        case["labels"],
        _bold(f"{ratio:.2f}", ratio > min(limit, best_ratio)),
        "" if np.isnan(smoothed) else _bold(f"{smoothed:.2f}", smoothed > limit),
        f"{best_ratio:.2f}" if peers else "",
        _bold(f"{time:.1f}", time > best_time),
        f"{best_time:.1f}" if peers else "",
        _bold(f"{memory:.2f}", memory > _MEMORY[case["net"] in _CONVOLUTIONAL]),
        _bold(f"{compiled:.1f}", compiled > _COMPILE),
        _bold(f"{fused['error_float32']:.0e}", fused["error_float32"] > _SINGLE),
        _bold(f"{fused['error_float64']:.0e}", fused["error_float64"] > _DOUBLE),
    ]
    return "| " + " | ".join(cells) + " |"


def _bold(text: str, missed: bool) -> str:
    return f"**{text}**" if missed else text


def _details(record: dict[str, Any]) -> list[str]:
    case = record["case"]
    lines = [
        f"### {NETS[case['net']]}, {case['num_classes']} classes, {case['labels']}, "
        f"batch {case['batch_size']}",
        "",
        f"Measured on {record['date']}, {record['machine']}"
        f"{', memory kept' if record.get('keep_memory') else ''}.",
        "",
        "| method | ms | ratio | temporaries, MB | compile, s | error |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for name, facts in record["methods"].items():
        if "not_run" in facts:
            lines.append(f"| {name} | not run: {facts['not_run']} | | | | |")
            continue
        low, middle, high = np.quantile(_ratios(record, name), [0.1, 0.5, 0.9])
        error = facts.get("error", facts.get("error_float32"))
        cells = [
            name,
            f"{np.median(facts['ms']):.1f}",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            f"{facts['temporary_mb']:.1f}" if "temporary_mb" in facts else "",
            f"{facts['compile_s']:.1f}" if "compile_s" in facts else "",
            "" if error is None else f"{error:.0e}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _figure(records: list[dict[str, Any]], path: Path) -> None:
    """One panel a net; ratios against the number of classes."""
    nets = [net for net in NETS if any(r["case"]["net"] == net for r in records)]
    columns = min(len(nets), 4)
    rows = -(-len(nets) // columns)
    for_legend = 1.0 if rows * columns == len(nets) else 0.0  # else in a free panel
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.2 * columns + 0.4, 2.3 * rows + for_legend),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    spare = axes.flat[len(nets) :]
    for axis in spare:
        axis.axis("off")
    handles: dict[str, Any] = {}
    for net, axis in zip(nets, axes.flat, strict=False):
        _panel(axis, [r for r in records if r["case"]["net"] == net])
        axis.set_title(NETS[net], fontsize=9, loc="left", fontweight="bold")
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.supylabel("time / plain gradient of the same library", fontsize=8)
    named: Any = {"handles": handles.values(), "labels": handles.keys()}
    if len(spare):
        spare[0].legend(**named, loc="center", fontsize=8, frameon=False)
    else:
        place: Any = {"loc": "outside lower center", "ncols": columns}
        figure.legend(**named, **place, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axis: Any, records: list[dict[str, Any]]) -> None:
    batch = min(r["case"]["batch_size"] for r in records)
    records = [r for r in records if r["case"]["batch_size"] == batch]
    classes = sorted({r["case"]["num_classes"] for r in records})
    for name, color in reversed(_COLORS.items()):  # the first on top
        ratios = {
            place: [
                float(np.median(_ratios(r, name)))
                for r in records
                if r["case"]["num_classes"] == number
                and r["methods"].get(name, {}).get("ms")
            ]
            for place, number in enumerate(classes)
        }
        points = {place: values for place, values in ratios.items() if values}
        if not points:
            continue
        middle = [np.exp(np.log(values).mean()) for values in points.values()]
        axis.plot(
            list(points),
            middle,
            _MARKERS[name] + "-",
            color=color,
            label=name,
            linewidth=1.2,
            markersize=4,
        )
        for place, values in points.items():
            span = [min(values), max(values)]
            axis.plot([place] * 2, span, color=color, linewidth=3, alpha=0.4)
    axis.axhline(1, color="black", linewidth=0.8)
    for place, number in enumerate(classes):
        limit = next(bar for most, bar in _LIMITS.items() if number <= most)
        span = [place - 0.3, place + 0.3]
        axis.plot(span, [limit] * 2, "k:", lw=1, label="aim of jax: fused")
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_xticks(range(len(classes)), [f"{number:,}" for number in classes])
    axis.set_xlim(-0.5, len(classes) - 0.5)
    axis.set_xlabel("classes", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.3)
