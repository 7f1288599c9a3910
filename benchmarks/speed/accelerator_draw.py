"""The table and the picture of accelerator.py's JSON."""

from pathlib import Path

SKIPPED = "skipped"


def cell(value: object) -> str:
    """A figure with three digits; long names cut."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)[:60]


def table(result: dict) -> None:
    """One table a row, printed."""
    from rich.console import Console
    from rich.table import Table

    console, made = Console(), result["made"]
    console.print(f"{made['device']}, {made['date']}, jax {made['versions']['jax']}")
    for name, row in result["rows"].items():
        seconds = "" if row["seconds"] is None else f", {row['seconds']:.0f} s"
        shown = Table(title=f"{name}{seconds}", title_justify="left")
        keys = list(dict.fromkeys(key for e in row["entries"] for key in e if key != "most"))
        for key in keys:
            shown.add_column(key)
        for entry in row["entries"]:
            shown.add_row(*(cell(entry[key]) if key in entry else "" for key in keys))
        console.print(shown)
        if "error" in row:
            console.print(f"{name}: {row['error']}", style="red")


def picture(result: dict, file: Path) -> None:
    """Steps a second against environments x seeds, log-log; a panel per game and kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grids = {
        name: [entry for entry in row["entries"] if SKIPPED not in entry]
        for name, row in result["rows"].items()
        if name.startswith(("distil-", "ppo-"))
    }
    panels = {name: entries for name, entries in grids.items() if entries}
    if not panels:
        return
    size = (4.2 * len(panels), 3.6)
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (name, entries) in zip(axes[0], panels.items(), strict=True):
        panel(axis, name, entries)
    axes[0][0].set_ylabel("environment steps a second, all seeds")
    figure.suptitle(f"{result['made']['device']}, {result['made']['date']}")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def panel(axis, name: str, entries: list[dict]) -> None:
    """A line per number of seeds."""
    for number in sorted({entry["seeds"] for entry in entries}):
        mine = sorted(
            (e["num_envs"], e["steps_per_second"]) for e in entries if e["seeds"] == number
        )
        label = f"{number} seed{'s' if number > 1 else ''}"
        axis.plot(
            [envs * number for envs, _ in mine], [rate for _, rate in mine], "o-", label=label
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_title(name.replace("distil-", "distillation, ").replace("ppo-", "PPO, "))
    axis.set_xlabel("environments x seeds")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
