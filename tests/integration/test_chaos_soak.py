"""The program that looks for leaks finds those that are planted, and no others."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUR_S = 3600.0

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux's /proc")


@pytest.fixture
def module(monkeypatch):
    """Return a function that imports a module of the program."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"chaos.soak.{name}")


@pytest.fixture
def verdict(module):
    """Return a function that returns the verdict on the values of a kind in one hour."""
    series = module("series")

    def judge(values, kind="rss"):
        one = series.Series(series.KINDS[kind])
        for number, value in enumerate(values):
            one.add(number * HOUR_S / len(values), value)
        return one.trend(HOUR_S).verdict

    return judge


def _noise(size, seed=3):
    draw = random.Random(seed)
    return [draw.gauss(0.0, size) for _ in range(400)]


@pytest.mark.parametrize(("rise_mb", "noise_mb"), [(12.0, 0.0), (30.0, 10.0), (300.0, 5.0)])
def test_a_steady_rise_grows(verdict, rise_mb, noise_mb):
    """Also under noise."""
    values = [300 + rise_mb * i / 400 + noise for i, noise in enumerate(_noise(noise_mb))]
    assert verdict(values) == "grows"


def test_a_rise_in_small_steps_grows(verdict):
    """As that of an allocator, or of a file that is opened now and then."""
    assert verdict([20 + i // 40 for i in range(400)], "open_files") == "grows"


@pytest.mark.parametrize("noise_mb", [0.0, 1.0, 30.0])
def test_what_only_varies_is_steady(verdict, noise_mb):
    """However much."""
    assert verdict([300 + noise for noise in _noise(noise_mb)]) == "steady"


def test_a_saw_tooth_is_steady(verdict):
    """As that of the garbage collector, or of files that are pruned."""
    assert verdict([300 + i % 37 for i in range(400)]) == "steady"


def test_one_step_is_steady(verdict):
    """A buffer that is allocated late is no leak."""
    assert verdict([300 + 100 * (i > 150) for i in range(400)]) == "steady"


def test_a_cache_that_fills_up_is_steady(verdict):
    """It rises in the first half."""
    assert verdict([300 + 100 * (1 - 2 ** (-i / 25)) for i in range(400)]) == "steady"


def test_a_small_rise_is_steady(verdict):
    """Below two per cent of the start."""
    assert verdict([300 + 5 * i / 400 for i in range(400)]) == "steady"


def test_the_warm_up_does_not_count(module):
    """The first tenth of the time."""
    series = module("series")
    one = series.Series(series.KINDS["rss"])
    for number in range(400):
        one.add(float(number), 100.0 if number < 39 else 300.0)
    trend = one.trend(400.0)
    assert (trend.start, trend.middle, trend.end) == (300.0, 300.0, 300.0)
    assert trend.per_hour == pytest.approx(0.0, abs=1.0)


def test_the_slope_is_per_hour(module):
    """A megabyte a second."""
    series = module("series")
    one = series.Series(series.KINDS["rss"])
    for number in range(100):
        one.add(float(number), 300.0 + number)
    assert one.trend(100.0).per_hour == pytest.approx(HOUR_S)


def test_few_samples_are_too_short_for_a_verdict(verdict):
    """Any verdict on them would be chance."""
    assert verdict([300.0 + 100 * i for i in range(12)]) == "too short"


def test_speed_is_not_judged(verdict):
    """Other programs on the machine change it."""
    assert verdict([300.0 + i for i in range(400)], "steps_per_s") == "not judged"


def test_what_grows_or_fails_makes_a_session_fail(module):
    """And so does one that has measured nothing."""
    session, report = module("session"), module("report")
    leaking, empty = session.Session(seconds=100.0), session.Session()
    failing = session.Session(seconds=100.0, problems=["the training ended by itself"])
    for number in range(100):
        leaking.series["rss"].add(float(number), 300.0 + number)
        failing.series["rss"].add(float(number), 300.0)
    assert [report.is_steady(one) for one in (leaking, empty, failing)] == [False] * 3
    assert "grows" in report.text(leaking)


def test_a_process_and_its_children_are_measured(module):
    """This one, with one child."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE):
        found = module("measure").measure_process(os.getpid())
    assert found["rss"] > 10
    assert found["threads"] >= 1
    assert found["open_files"] >= 3
    assert found["children"] >= 1


def test_a_process_ends_if_the_command_was_killed(module, monkeypatch, tmp_path):
    """It would train for ever, in a session of its own."""
    status = module("status").StatusFile(tmp_path / "status.json", 0.0)
    status.count("steps")
    assert module("status").read_status(tmp_path / "status.json")["steps"] == 1
    monkeypatch.setattr(os, "getppid", lambda: -1)
    with pytest.raises(SystemExit, match="the command was killed"):
        status.count("steps")


def _command(folder, *options):
    return [sys.executable, "-m", "chaos", "soak", "--out", str(folder), *options]


def _soak(folder, *options):
    """Run the program; return its exit code, its report and the verdicts by kind."""
    done = subprocess.run(
        _command(folder, *options),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    content = json.loads((folder / "soak.json").read_text())
    assert content["problems"] == [], done.stdout
    verdicts = {name: trend["verdict"] for name, trend in content["trends"].items()}
    return done.returncode, done.stdout, verdicts


def test_a_short_run_gives_a_report_and_a_picture(tmp_path):
    """Ten seconds show whether files stay open; whether memory grows takes longer to tell."""
    code, report, verdicts = _soak(tmp_path, "--minutes", "0.17")
    assert code == ("grows" in verdicts.values()), report
    assert verdicts["open_files"] == "steady", report
    assert "resident memory, MB" in report
    assert (tmp_path / "soak.txt").read_text() in report
    pytest.importorskip("matplotlib")
    assert (tmp_path / "soak.png").stat().st_size > 10_000


@pytest.mark.long
@pytest.mark.parametrize(("leak", "kind"), [("tensors", "rss"), ("files", "open_files")])
def test_a_planted_leak_grows(tmp_path, leak, kind):
    """Within two minutes."""
    code, report, verdicts = _soak(tmp_path, "--minutes", "2", "--leak", leak)
    assert code == 1
    assert verdicts[kind] == "grows", report


@pytest.mark.long
def test_ctrl_c_ends_it_with_a_report(tmp_path):
    """Of what was measured; no process is left."""
    with subprocess.Popen(
        _command(tmp_path, "--minutes", "30"), cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "steps=" not in process.stderr.read(50):
            assert process.poll() is None
        time.sleep(5)
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
    assert "interrupted: these are the results so far" in errors
    assert "resident memory" in (tmp_path / "soak.txt").read_text()
