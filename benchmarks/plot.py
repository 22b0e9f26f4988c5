"""Draw the picture of the README from benchmarks/results/ntxent.json: time and extra memory of NT-Xent against the batch.

python benchmarks/plot.py  # docs/images/ntxent.svg
"""

import json
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
CURVES = {
    "metric-learning SupConLoss": ("pytorch-metric-learning", "#9467bd"),
    "lightly NTXentLoss": ("lightly", "#2a9d5c"),
    "bare torch": ("PyTorch", "#8a8a8a"),
    "compiled torch": ("torch.compile", "#3465a4"),
    "zoo": ("contrastive-zoo", "#e0662b"),
}
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "lines.linewidth": 2}


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Two panels, time and memory, with a curve for each contestant."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for contestant, (label, colour) in CURVES.items():
        own = [row for row in rows if row["contestant"] == contestant]
        sizes = [row["batch_size"] for row in own]
        time.plot(sizes, [row["milliseconds"] for row in own], "o-", label=label, color=colour)
        memory.plot(sizes, [row["megabytes"] for row in own], "o-", label=label, color=colour)
    for axes, title in ((time, "time, ms"), (memory, "extra memory, MB")):
        axes.set(xscale="log", yscale="log", xlabel="pairs in the batch", title=title)
        axes.set_xticks([256, 1024, 4096], ["256", "1,024", "4,096"])
        axes.minorticks_off()
    time.legend(fontsize=8)
    return figure


def main() -> None:
    """Draw and save."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "ntxent.json").read_text())["results"]["rows"]
    with rc_context({**STYLE, "svg.fonttype": "none", "svg.hashsalt": "ntxent"}):
        draw(rows).savefig(ROOT / "docs" / "images" / "ntxent.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
