"""The report of folders that are whole, incomplete or no runs; opened in a real browser where there is one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from qat.errors import ReportError
from qat.report.__main__ import main
from qat.report.folder import differences, read_run, read_runs, wilson
from qat.report.page import render
from qat.report.record import ClassCount, Classes, Confusion, Layer, Layers, Phase, Run, Training, Values, write

COLOR = "getComputedStyle(document.body).backgroundColor"
TOP1 = {"float": 98.1, "ptq": 97.5, "qat": 98.06, "int8": 98.33}
RESULTS = {
    "model": "Net<1>", "recipe": "w8a8", "target": "onnxruntime", "top1": TOP1, "agreement": 99.72, "examples": 360,
    "size_bytes": {"float": 8_900_000, "int8": 2_400_000}, "latency_ms": {"float": 1.5, "int8": 0.75},
    "int8_mac_share": 1.0, "passed": True, "failures": [], "departure": "", "seed": 0,
    "parity": [{"name": "fake-quant", "top1": 98.06, "agreement": 100.0, "max_steps": 0.0, "mean_steps": 0.0}],
    "cpu": {"name": "A CPU", "isa": ["avx2"], "threads": 2}, "versions": {"torch": "1.2.3"},
}  # fmt: skip


def values(snr: float) -> Values:
    return Values(low=-1, high=1, counts=(1, 5, 9, 2) * 12, grid="int8", bits=8, grid_low=-0.5, grid_high=0.5,
                  clipped=0.01, snr=snr)  # fmt: skip


LONG = "stages.3.blocks.17.depthwise_separable.pointwise_convolution_number"


def layer(i: int) -> Layer:
    return Layer(name=f"block{i}.conv", kind="conv2d", integer=True, weight=values(40.0), activation=values(30.0),
                 snr=20.0 + (i * 7) % 200, ms=0.25, macs=10, bytes=10,
                 inputs=(f"block{i - 1}.conv",) if i else ())  # fmt: skip


def strange() -> Layer:
    return Layer(name=LONG, kind="softmax", integer=False, why="no integer kernel is known for it", snr=300.0)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    write(folder, Layers(layers=(*(layer(i) for i in range(200)), strange()), examples=32))
    write(folder, Run(command="python train.py seed=3", commit="0123456789abcdef"))
    write(folder, Classes(examples=360, disagreements=2, classes=(
        ClassCount(name="a cat", count=10, float_correct=9, int8_correct=7),
    ), confusion=(Confusion(label="a cat", predicted="a dog|hound", float_count=1, int8_count=3),)))  # fmt: skip
    write(folder, Training(
        epochs=1, steps=(1, 2), loss=(2.0, 1.0), lr=(0.1, 0.05), val_steps=(2,), val_loss=(1.5,), val_top1=(90.0,),
        phases=(Phase(name="ranges move", start=0, end=1), Phase(name="ranges frozen", start=1, end=2)),
        range_steps=(1, 2), scales={"q": (1.0, 2.0)}, oscillating={"conv": (float("nan"), 0.25), "fc": (0.0, 0.05)},
    ), "qat")  # fmt: skip
    (folder / "results.json").write_text(json.dumps(RESULTS))
    return folder


def test_the_interval_is_wilsons():
    assert wilson(50.0, 100) == pytest.approx((40.383, 59.617), abs=1e-3)  # published tables
    assert wilson(100.0, 10)[1] == pytest.approx(100.0)


def test_the_report_of_200_operators_is_one_small_file_and_the_same_as_text(run):
    assert main([str(run)]) == 0
    html, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert len(html) < 5_000_000
    assert "Net&lt;1&gt;" in html
    assert 'src="http' not in html
    assert 'href="http' not in html
    for part in ("python train.py seed=3", "0123456789ab", "a cat", "-20.0", "ranges frozen"):
        assert part in html
    for part in ("98.33", "fake-quant", "block199.conv", "python train.py seed=3", "0123456789ab", "a cat", "-20.0",
                 "ranges frozen", "A CPU", "1.2.3", "8,900", "0.750", LONG, "no integer kernel", "hound"):  # fmt: skip
        assert part in html
        assert part in text
    assert "Weights that oscillate" in html
    assert "oscillated in the end: 15.00 %" in text
    assert "a dog\\|hound" in text  # a cell stays a cell


def test_what_is_missing_is_said_and_what_is_there_is_shown(tmp_path):
    (tmp_path / "plan.txt").touch()
    found = read_run(tmp_path)
    assert [line.split(":")[0] for line in found.missing] == ["no results.json", "no record/layers.json"]
    assert "the run did not end" in render("report.html.j2", runs=[found], title="a run")
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    assert "the run is older than this report" in render("report.md.j2", runs=[read_run(tmp_path)])


def test_further_targets_stand_below_the_ladder(run):
    stage = {"name": "openvino 1.0", "top1": 97.25, "agreement": 99.5, "max_steps": 2.0, "mean_steps": 0.25}
    (run / "results.json").write_text(json.dumps({**RESULTS, "also": {"openvino": stage}}))
    assert main([str(run)]) == 0
    assert "<td>also openvino: openvino 1.0</td><td>97.25</td>" in (run / "report.html").read_text()
    assert "| also openvino: openvino 1.0 | 97.25 | 99.50 | 2.0 | 0.250 |" in (run / "report.md").read_text()


def test_results_of_another_version_are_named_and_the_rest_is_shown(run):
    (run / "results.json").write_text(json.dumps({k: v for k, v in RESULTS.items() if k not in ("cpu", "top1")}))
    found = read_run(run)
    assert found.results is None
    assert found.missing == ("results.json is of another version: it has no top1, cpu; run again for its numbers",)
    assert main([str(run)]) == 0
    assert "block199.conv" in (run / "report.html").read_text()


def test_the_report_starts_without_torch():
    """It can be rebuilt years later, where nothing of training is installed."""
    code = "import sys, qat.report.__main__; print('torch' in sys.modules, 'pytorch_lightning' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert process.stdout.split() == ["False", "False"], process.stderr


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ReportError, match=r"is no run: it has none of results\.json"):
        read_run(tmp_path)
    with pytest.raises(ReportError, match="is no folder; give the folder of a run"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ReportError, match=r"results\.json is damaged"):
        read_run(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ReportError, match=r"results\.json is damaged: it holds no results"):
        read_run(tmp_path)


def test_runs_are_compared_by_the_settings_that_differ(run, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    (run / "config.yaml").write_text("seed: 0\nqat: {epochs: 5}\nrun_dir: a\n")
    (tmp_path / "other" / "config.yaml").write_text("seed: 0\nqat: {epochs: 9}\nrun_dir: b\n")
    found = read_runs([run, tmp_path / "other"])
    assert differences(found) == {"qat.epochs": ["5", "9"]}
    assert main([str(run), str(tmp_path / "other"), "-o", str(tmp_path)]) == 0
    assert "<mark>9</mark>" in (tmp_path / "report.html").read_text()
    assert "| `qat.epochs` | 5 | 9 |" in (tmp_path / "report.md").read_text()


def test_two_runs_of_one_name_are_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "other" / "run")
    with pytest.raises(ReportError, match="two runs are called run; rename a folder"):
        read_runs([run, tmp_path / "other" / "run"])


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("ReportError: ")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_a_browser_sorts_and_searches_the_table_and_asks_nobody(run, opened, width, scheme):
    main([str(run)])
    with opened(run / "report.html", width, scheme) as page:
        gathered = page.locator("table.layers tbody tr td:nth-child(2)")
        first = [float(text) for text in gathered.all_inner_texts()]
        page.get_by_role("button", name="gathered, dB").click()
        turned = [float(text) for text in gathered.all_inner_texts()]
        search = page.get_by_role("searchbox").last
        search.fill("block17.")
        visible = page.locator("table.layers tbody tr:visible").count()
        search.fill("")
        page.locator(".chart svg").nth(2).wait_for()
        before = page.evaluate(COLOR)
        page.locator("#theme").click()
        assert before != page.evaluate(COLOR)
        loss = page.locator(".chart").first
        loss.locator(".role-legend-label text", has_text="validation").click()
        loss.locator("path[opacity='0.08']").first.wait_for(state="attached")
        cut = page.evaluate(
            "(s => s.scrollWidth - s.clientWidth)(document.querySelector('table.layers').parentElement)"
        )
    assert first == sorted(first)
    assert turned == sorted(first, reverse=True)
    assert visible == 1
    assert cut == 0 or width < 1280  # a wide screen shows the whole table


def test_paper_is_white_and_shows_what_is_folded(run, opened):
    main([str(run)])
    with opened(run / "report.html", 1280, "dark") as page:
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate(COLOR) == "rgb(255, 255, 255)"
        assert page.locator("details:not([open])").count() == 0
        assert not page.locator("#theme").is_visible()
