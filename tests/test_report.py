"""What a run is shown as: the page and its pictures, comparisons by seeds, tracking."""

import html.parser
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxkd
from jaxkd import presets, tracking
from jaxkd.cli import directory, main
from jaxkd.cli.summary import _scores
from jaxkd.report import drawing, figures, page, statistics

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CARD = dict(
    format=2,
    command="distill",
    env="CartPole-v1",
    device="cpu, 2 cores",
    versions={"jaxkd-rl": jaxkd.__version__, "jax": jax.__version__},
    settings=dict(seeds=3, seed=0, method="on_policy_distillation", student="mlp:8", lanes=None),
    preset=directory.plain(presets.preset("CartPole-v1")._asdict()),
    argv=["distill", "CartPole-v1", "--seeds", "3", "--out", "<b>a run</b>"],
    started=1.7e9,
    status="finished",
)


def scored(returns, **more) -> dict:
    """One policy's row of a summary.json."""
    one = dict(
        returns=list(returns),
        iqm=float(jaxkd.iqm(returns)),
        interval=list(jaxkd.interval(returns)),
        kept=None,
    )
    cost = dict(actor_parameters=58, actor_bytes=232, flops_per_action=107.0, latency_us=31.4)
    row = one | cost | dict(network="mlp:8", episodes=64, env_steps=2048, size_ratio=0.5)
    return row | dict(different_episodes=60.0, discounted_iqm=9.9, sampled=dict(one)) | more


def planted(
    folder: Path, student=(300.0, 480.0, 410.5), *, policies: bool = False, **changed
) -> Path:
    """The directory of a finished run with these returns of its students."""
    folder.mkdir(parents=True)
    run = directory.Directory(folder)
    run.write_card(CARD | changed)
    summary = dict(
        env=changed.get("env", "CartPole-v1"),
        teacher=scored([500.0] * len(student), kept=1.0),
        student=scored(student, kept=0.81234),
        control=scored([25.0] * len(student), kept=0.01),
        random=dict(mean=20.0, interval=[19.0, 21.0]),
        agreement=0.987,
        kl=0.01234,
        different_starts=64,
        kl_while_learning=dict(half=0.02, end=0.02),
        wall_seconds=41.0,
        compile_seconds=16.0,
    )
    run.write("summary.json", summary)
    for phase, level in (("teacher", 500.0), ("student", np.array(student)), ("control", 25.0)):
        for line in range(1, 6):
            curve = line / 5 * np.broadcast_to(level, len(student))
            seeds = {"return": curve, "loss/kl": np.full(len(student), 1 / line)}
            seeds |= {"loss/agreement": np.full(len(student), 1 - 0.5 / line)}
            seeds |= {"return": [None] * len(student)} if line == 1 else {}
            run.append("metrics.jsonl", phase=phase, updates=line, env_steps=line * 64, seeds=seeds)
    if policies:
        env = jaxkd.envs.make("CartPole-v1", 1)
        policy = jaxkd.networks.mlp(env, (8,))
        for name in ("teachers", "students"):
            jaxkd.save_policy(folder / name / "02", policy, policy.init(jaxkd.seeds(0, 1)[0]))
    return folder


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> SimpleNamespace:
    """A run's report, by the command."""
    run = planted(tmp_path_factory.mktemp("shown") / "run", policies=True)
    assert main(["report", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text())
    return SimpleNamespace(run=run, html=(run / "report.html").read_text(), summary=summary)


# --- the page -----------------------------------------------------------------------------------


class _Cells(html.parser.HTMLParser):
    """The rows of the headline table: {heading: [texts]}."""

    def __init__(self, text: str):
        super().__init__()
        self.rows: dict[str, list[str]] = {}
        self._into, self._heading = None, ""
        table = text[text.index('<table class="headline">') :].split("</table>")[0]
        self.feed(table[table.index("<tbody>") :])

    def handle_starttag(self, tag, attrs):
        if tag == "td":
            self.rows[self._heading].append("")
        self._into = tag if tag in ("th", "td") else self._into
        self._heading = "" if tag == "tr" else self._heading

    def handle_endtag(self, tag):
        if tag == "th":
            self.rows.setdefault(self._heading, [])
        self._into = None if tag in ("th", "td") else self._into

    def handle_data(self, data):
        if self._into == "th":
            self._heading += data
        elif self._into == "td":
            self.rows[self._heading][-1] += data


def check_table(rows: dict[str, list[str]], summary: dict) -> None:
    """Every number that is shown is the summary's, to the digits shown."""
    policies = [summary[name] for name in ("teacher", "student", "control")]
    single = {
        "actor parameters": [row["actor_parameters"] for row in policies],
        "bytes": [row["actor_bytes"] for row in policies],
        "FLOPs an action": [row["flops_per_action"] for row in policies],
        "latency, batch of one": [row["latency_us"] for row in policies],
        "worst seed, greedy": [min(row["returns"]) for row in policies],
        "environment steps a seed": [row["env_steps"] for row in policies],
        "greedy actions equal to the teacher's": [None, 100 * summary["agreement"], None],
        "KL(teacher || student), nats": [None, summary["kl"], None],
    }
    for way, of in (("greedy", lambda row: row), ("sampled", lambda row: row["sampled"])):
        single[f"return, {way}: IQM [95 % interval]"] = [
            (of(row)["iqm"], *of(row)["interval"]) for row in policies
        ]
        single[f"kept of the teacher, {way}"] = [
            None if of(row)["kept"] is None else 100 * of(row)["kept"] for row in policies
        ]
    assert rows["network"] == [row["network"] for row in policies]
    checked = 0
    for heading, wanted in single.items():
        if heading not in rows:
            assert all(value is None for value in wanted), heading
            continue
        for text, value in zip(rows[heading], wanted, strict=True):
            found = [float(x) for x in re.findall(r"-?\d+\.?\d*", text.replace(",", ""))]
            values = [] if value is None else list(value) if isinstance(value, tuple) else [value]
            found = [] if text.strip() == "-" else found[: len(values)]  # a ratio stands behind
            digits = len(text.split("[")[0].split()[0].partition(".")[2]) if found else 0
            assert found == pytest.approx(values, abs=0.51 * 10**-digits), (heading, text)
            checked += len(values)
    assert checked >= 30 and set(rows) <= {*single, "network"}


def test_every_number_of_the_table_is_the_summarys(shown):
    check_table(_Cells(shown.html).rows, shown.summary)
    text = (shown.run / "report.md").read_text()
    rows = [
        line.replace("\\|", "!").strip("|").split("|")
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    cells = {row[0].strip().replace("!", "|"): [x.strip() for x in row[1:]] for row in rows}
    check_table({name: each for name, each in cells.items() if name}, shown.summary)


def test_a_wrong_number_is_found(shown):
    """The test above can fail: one digit of one cell."""
    wrong = json.loads(json.dumps(shown.summary))
    wrong["student"]["interval"][0] -= 0.02
    with pytest.raises(AssertionError, match="return, greedy"):
        check_table(_Cells(shown.html).rows, wrong)


def test_nothing_is_fetched_and_nothing_is_code(shown):
    sources = re.findall(r"""\b(?:src|href|srcset|poster|action)\s*=\s*["']([^"']*)""", shown.html)
    assert len(sources) > 2 and all(each.startswith(("data:", "#")) for each in sources)
    assert not re.search(r"<script|<iframe|<object|@import|url\((?!#)", shown.html)
    assert "<b>a run" not in shown.html and "&lt;b&gt;a run" in shown.html


def test_everybody_can_read_it(shown):
    images = re.findall(r"<img [^>]*>", shown.html)
    assert len(images) == 2 and all(re.search(r'alt="[^"]{20,}"', each) for each in images)
    svgs = re.findall(r"<svg [^>]*>", shown.html)
    assert 'class="missing' not in shown.html
    assert len(svgs) == 5 and all('role="img"' in each and "aria-label" in each for each in svgs)
    assert shown.html.count('scope="col"') == 4 and 'lang="en"' in shown.html
    for wanted in ("prefers-color-scheme: dark", "@media print", "prefers-reduced-motion"):
        assert wanted in shown.html


def test_how_alike_they_became_is_drawn(shown):
    """From metrics.jsonl, the student's; a run that says nothing of it has no such picture."""
    lines = page._lines(shown.run)
    drawn = page.curve(lines, "student", "loss/agreement")
    assert drawn is not None and drawn.steps.tolist() == [64, 128, 192, 256, 320]
    np.testing.assert_allclose(drawn.values[:, 0], [0.5, 0.75, 1 - 0.5 / 3, 0.875, 0.9])
    titles = lambda lines: [each.title for each in page._alike(lines)]
    assert titles(lines) == ["Agreement", "Divergence"]
    for line in lines:
        line["seeds"].pop("loss/agreement", None)
    assert titles(lines) == ["Divergence"]
    for text in (shown.html, (shown.run / "report.md").read_text()):
        assert "Share of equal greedy actions on the states of whoever acts" in text


def test_it_says_how_to_repeat_and_cite_it(shown):
    for text in (shown.html, (shown.run / "report.md").read_text()):
        assert "jaxkd distill CartPole-v1 --seeds 3" in text
        assert f"version = {{{jaxkd.__version__}}}" in text


PROBE = """<script>addEventListener("load", () => {
  const rows = [...document.querySelectorAll(".headline tr")].map(
    (row) => [...row.children].map((cell) => cell.textContent.trim().replace(/\\s+/g, " ")));
  const images = [...document.images].map((image) => image.complete && image.naturalWidth);
  const wide = document.documentElement.scrollWidth - innerWidth;
  const fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
  const said = {rows, images, wide, fetched: fetched.filter((name) => !name.startsWith("data:"))};
  document.body.textContent = "found" + JSON.stringify(said) + "end";
});</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [380, 1200])
def test_in_a_browser(shown, tmp_path, width):
    """Every picture loads, nothing is fetched, nothing is wider than a phone, the numbers are the
    summary's as they are rendered.
    """
    file = tmp_path / "probed.html"
    file.write_text(shown.html.replace("</body>", PROBE))
    options = [f"--window-size={width},900", f"--user-data-dir={tmp_path}", "--no-sandbox"]
    done = subprocess.run(
        [CHROMIUM, "--headless", "--disable-gpu", *options, "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = json.loads(html.unescape(re.search("found(.*)end", done.stdout)[1]))
    assert len(found["images"]) == 2 and all(found["images"])
    assert found["fetched"] == [] and found["wide"] <= 0
    check_table({row[0]: row[1:] for row in found["rows"] if row[0]}, shown.summary)


@pytest.mark.parametrize(
    "gone, said",
    [
        ("summary.json", "no summary.json"),
        ("metrics.jsonl", "no metrics.jsonl"),
        ("students", "no saved policies"),
    ],
)
def test_what_is_missing_is_said(tmp_path, capsys, gone, said):
    run = planted(tmp_path / "run", status="interrupted")
    path = run / gone
    path.unlink() if path.is_file() else None
    assert main(["report", str(run)]) == 0 and "report.html" in capsys.readouterr().out
    for name in ("report.html", "report.md"):
        text = (run / name).read_text()
        assert said in text and "jaxkd resume" in text


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", ["", "{", "[1]", '{"teacher": {}}', '{"phase": 1}\n{"a', "\0"])
def test_damaged_files_are_no_traceback(tmp_path, name, content):
    run = planted(tmp_path / "run")
    (run / name).write_text(content)
    assert main(["report", str(run)]) == 0 and "<h1>" in (run / "report.html").read_text()


def test_several_sizes_are_a_picture(tmp_path):
    run = planted(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    assert not page._by_size(summary)
    more = {"student-2": scored([480.0, 481.0], network="mlp:2", actor_parameters=14, kept=0.96)}
    several = summary | more | {"seconds-2": 3}
    (shown,) = page._by_size(several)
    assert "smallest that keeps it: mlp:2" in shown.svg and "var(--student" in shown.svg
    assert "The smallest that keeps 95 % is mlp:2, with 14 parameters." in page._lead(several)
    assert "smallest" not in page._lead(summary)


def test_a_summary_that_was_changed_is_not_shown(tmp_path):
    run = planted(tmp_path / "run", digests={"summary.json": "of another"})
    assert main(["report", str(run)]) == 0
    shown = (run / "report.html").read_text()
    assert "changed after it was written" in shown and "403.67" not in shown


def test_no_run_no_report(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 4 and "no run.json" in capsys.readouterr().err


def test_a_failing_report_loses_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "gather", lambda *given: 1 / 0)
    from jaxkd.cli import reporting

    reporting.append(planted(tmp_path / "run"))
    said = capsys.readouterr().err
    assert said.startswith("warning: no report: division by zero") and "jaxkd report" in said


# --- the film -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*presets.PRESETS, "DeepSea-bsuite", "MetaMaze-misc"])
def test_every_preset_has_a_picture(name):
    spec = jaxkd.envs.make(name, 1).obs_spec
    obs, state = np.zeros(spec.shape, spec.dtype), SimpleNamespace(pos=(1, 1), goal=(5, 5))
    empty = drawing.painter(name, spec)(obs, SimpleNamespace(inner=state))
    assert empty.size == (drawing.SIZE, drawing.SIZE)
    obs.flat[:2], state.pos = 1, (1, 2)
    assert drawing.painter(name, spec)(obs, state).tobytes() != empty.tobytes()


def test_the_film_is_small_and_moves(shown):
    from PIL import Image

    with Image.open(shown.run / "report.gif") as film:
        assert film.n_frames > 3 and film.info["duration"] and film.info["loop"] == 0
        first = film.convert("RGB").tobytes()
        film.seek(film.n_frames - 1)
        assert film.convert("RGB").tobytes() != first
    assert (shown.run / "report.gif").stat().st_size < 300_000
    assert "Seed 2, whose student's return is the median of 3" in html.unescape(
        shown.html
    )  # 410.5 of three


# --- statistics ---------------------------------------------------------------------------------


def test_a_known_probability_of_improvement():
    """Normals of means .5 and 0: P = Phi(.5 / sqrt 2) = .6382, and the interval that the
    variance of the Mann-Whitney statistic gives.
    """
    from scipy import stats

    grid = (np.arange(200) + 0.5) / 200
    theirs = stats.norm.ppf(grid)
    ours = theirs + 0.5
    value, low, high = statistics.estimate(
        statistics.probability_of_improvement, {"a": ours}, {"a": theirs}
    )
    wins = (ours[:, None] > theirs) + 0.5 * (ours[:, None] == theirs)
    error = np.sqrt(wins.mean(1).var(ddof=1) / 200 + wins.mean(0).var(ddof=1) / 200)
    assert value == pytest.approx(stats.norm.cdf(0.5 / np.sqrt(2)), abs=0.02)
    assert (low, high) == pytest.approx((value - 1.96 * error, value + 1.96 * error), abs=0.02)


def test_a_known_interval_of_the_iqm():
    from scipy import stats

    scores = np.random.default_rng(3).normal(1, 0.3, 40)
    found = stats.bootstrap(
        (scores,),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        method="percentile",
        n_resamples=5000,
        rng=1,
    )
    value, low, high = statistics.estimate(statistics.iqm, {"a": scores})
    assert value == pytest.approx(stats.trim_mean(scores, 0.25))
    assert (low, high) == pytest.approx(tuple(found.confidence_interval), abs=0.02)


def test_strata_are_drawn_apart():
    """Two environments far apart: their difference is no uncertainty."""
    value, low, high = statistics.estimate(statistics.iqm, {"a": [0.0] * 5, "b": [9.0] * 5})
    assert value == low == high == 4.5


def test_a_seed_counts_once_whatever_it_has_played():
    """Two seeds of 10 000 episodes each: the interval is that of two numbers."""
    episodes = np.random.default_rng(0).normal([[100.0], [200.0]], 30.0, (2, 10_000))
    played = jaxkd.base.Evaluation(episodes, np.ones_like(episodes), episodes)
    low, high = _scores(played, np.ones(2, bool))["interval"]
    assert (low, high) == pytest.approx((100, 200), abs=2)  # of episodes it would be 1 wide
    of_seeds = {"a": episodes.mean(axis=1)}
    assert statistics.estimate(statistics.iqm, of_seeds)[1:] == pytest.approx((low, high))


def test_the_area_under_a_curve():
    found = statistics.area([0, 10, 30], [[np.nan, 0.0, None], [0.0, 2.0, None], [4.0, 2.0, None]])
    assert found[:2] == pytest.approx([(0 * 10 + 2 * 20) / 30, (1 * 10 + 2 * 20) / 30])
    assert np.isnan(found[2])


def test_a_curve_is_that_of_its_points():
    values = np.random.default_rng(0).normal(size=(4, 9))
    middle, low, high = statistics.curve(values)
    assert middle == pytest.approx([jaxkd.iqm(row) for row in values])
    assert (low <= middle).all() and (middle <= high).all()
    values[2, 3] = np.inf
    assert np.isnan(statistics.curve(values)[0]).tolist() == [False, False, True, False]


# --- compare ------------------------------------------------------------------------------------


def test_compare_counts_seeds(tmp_path, capsys):
    a = planted(tmp_path / "a", student=(100.0, 200.0))
    b = planted(tmp_path / "b", student=(300.0, 400.0))
    assert main(["compare", str(a), str(b), "--format", "markdown"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    cells = {row[0]: row[1:] for row in rows}
    assert cells["seeds"] == ["2", "2"] and cells["worst seed"] == ["100.00", "300.00"]
    assert cells["IQM"] == ["150.00 [100.00, 200.00]", "350.00 [300.00, 400.00]"]
    assert cells[f"P(a seed does better than one of {a})"] == ["-", "1.00 [1.00, 1.00]"]
    assert cells["seeds with 50 % of the teacher"][1] == "1.00 [1.00, 1.00]"
    # the mean height: .4, .4, .6, .8, 1 of the last one, by trapezoids
    assert cells["area under the curve"][0].startswith(
        f"{150 * (0.2 + 0.4 + 0.6 + 0.8 + 0.5) / 4:.2f} "
    )


def test_compare_over_environments(tmp_path, capsys):
    runs = []
    for method, returns in (("one", (260.0, 260.0)), ("two", (500.0, 500.0))):
        for env in ("CartPole-v1", "Acrobot-v1"):
            settings = CARD["settings"] | dict(method=method)
            run = planted(tmp_path / f"{method} {env}", returns, env=env, settings=settings)
            runs.append(str(run))
    figure = tmp_path / "profile.png"
    assert main(["compare", *runs, "--format", "latex", "--profile", str(figure)]) == 0
    printed = capsys.readouterr().out
    assert "distill one mlp:8 & distill two mlp:8" in printed and figure.exists()
    assert "IQM, share of the teacher & 0.50 [0.50, 0.50] & 1.00 [1.00, 1.00]" in printed
    assert main(["compare", *runs[:3]]) == 0
    assert "one run of each environment" in capsys.readouterr().out


def test_profiles_fall():
    shares = {"a": {"x": np.array([0.5, 1.0]), "y": np.array([0.0, 1.0])}}
    (line,) = [x for x in figures.profiles(shares).axes[0].lines]
    assert line.get_ydata()[0] == 1 and (np.diff(line.get_ydata()) <= 0).all()


# --- tracking -----------------------------------------------------------------------------------


def test_what_is_not_installed_is_said_before_anything(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking.util, "find_spec", lambda name: None)
    started = time.monotonic()
    arguments = ["distill", "CartPole-v1", "--out", str(tmp_path / "run"), "--track", "tb"]
    assert main(arguments) == 2 and not (tmp_path / "run").exists()
    assert 'pip install "jaxkd-rl[tb]"' in capsys.readouterr().err
    assert time.monotonic() - started < 2
    assert main([*arguments[:-1], "tensorboard"]) == 2
    assert "Take tb, wandb or both" in capsys.readouterr().err


def test_tensorboard_has_what_was_written(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    track = jaxkd.tracker("tb", tmp_path, learning_rate=1e-3)
    track.write({"return": [[1.0, 3.0]], "loss/kl": [[np.nan, 0.5]]}, step=64, prefix="student")
    track.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, found = file.read_bytes(), {}
    while data:  # length, its CRC, the event, its CRC
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        data = data[16 + size :]
    assert found["student/return"] == (64, 2.0) and found["student/loss/kl"] == (64, 0.5)
    assert found["student/return/highest"] == (64, 3.0)


@pytest.mark.slow
def test_weights_and_biases_stays_here(tmp_path):
    track = jaxkd.tracker(["wandb"], tmp_path / "mine", seeds=2)
    track.write({"return": [1.0, 3.0]}, step=1)
    track.close()
    (run,) = (tmp_path / "mine" / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))


# --- versions -----------------------------------------------------------------------------------


def test_one_version_everywhere():
    wanted = jaxkd.__version__
    for file, pattern in (
        ("pyproject.toml", r'^version = "(.*)"'),
        ("CITATION.cff", r"^version: (.*)"),
        ("CHANGELOG.md", r"^## \[(\d[^\]]*)\]"),
    ):
        found = re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)
        assert found and found[1] == wanted, file
