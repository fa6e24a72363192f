"""The report of folders that are whole, incomplete or no runs; opened in a real browser where there is one."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from qat.errors import ReportError
from qat.report import charts
from qat.report.__main__ import main
from qat.report.folder import differences, read_run, read_runs
from qat.report.interval import wilson
from qat.report.page import render
from qat.report.record import (
    ClassCount,
    Classes,
    Confusion,
    Disagreement,
    Layer,
    Layers,
    Phase,
    Run,
    Training,
    Values,
    write,
)

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


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
LONG = "stages.3.blocks.17.depthwise_separable.pointwise_convolution_number"


def layer(i: int) -> Layer:
    return Layer(name=f"block{i}.conv", kind="conv2d", integer=True, weight=values(40.0), activation=values(30.0),
                 snr=20.0 + (i * 7) % 200, ms=0.25, macs=10, bytes=10,
                 inputs=(f"block{i - 1}.conv",) if i else (), fused=("batchnorm block.bn", "relu"),
                 why="7 bits, not 8" if i == 3 else "", quantizers=(f"block{i}.conv.weight_quantizer",))  # fmt: skip


def strange() -> Layer:
    return Layer(name=LONG, kind="softmax", integer=False, why="no integer kernel is known for it", snr=300.0)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    write(folder, Layers(layers=(*(layer(i) for i in range(200)), strange()), examples=32))
    write(folder, Run(command="python train.py seed=3", commit="0123456789abcdef"))
    (folder / "record" / "images").mkdir()
    (folder / "record" / "images" / "7.png").write_bytes(base64.b64decode(PIXEL))
    seen = Disagreement(file="record/images/7.png", label="a cat", float_class="a cat", float_p=0.75,
                        int8_class="a dog|hound", int8_p=0.5)  # fmt: skip
    write(folder, Classes(examples=360, disagreements=2, classes=(
        ClassCount(name="a cat", count=10, float_correct=9, int8_correct=7),
    ), confusion=(Confusion(label="a cat", predicted="a dog|hound", float_count=1, int8_count=3),),
        images=(seen,)))  # fmt: skip
    write(folder, Training(
        epochs=1, steps=(1, 2), loss=(2.0, 1.0), lr=(0.1, 0.05), val_steps=(2,), val_loss=(1.5,), val_top1=(90.0,),
        phases=(Phase(name="ranges move", start=0, end=1), Phase(name="ranges frozen", start=1, end=2)),
        range_steps=(1, 2), scales={"block1.conv.weight_quantizer": (1.0, 2.0), "q": (1.0, 1.5)},
        trained=("block1.conv.weight_quantizer",), oscillating={"conv": (float("nan"), 0.25), "fc": (0.0, 0.05)},
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
    (tmp_path / "config.yaml").write_text("task: qat\nqat: {epochs: 5}\n")
    assert read_run(tmp_path).missing[-1].startswith("no record/qat.json: no curves of training")
    assert "the run did not end" in render("report.html.j2", runs=[found], title="a run")
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    assert "the run is older than this report" in render("report.md.j2", runs=[read_run(tmp_path)], here=tmp_path)


def test_parts_that_are_gone_are_said(run):
    for name in ("record/run.json", "record/images/7.png"):
        (run / name).unlink()
    assert [line.split(":")[0] for line in read_run(run).missing] == [
        "no record/run.json", "1 images of record/images are gone, such as record/images/7.png",
    ]  # fmt: skip
    (run / "record" / "classes.json").unlink()
    assert "no record/classes.json" in read_run(run).missing[0]
    assert main([str(run)]) == 0


def test_a_page_without_the_drawing_library_says_so(run, monkeypatch):
    monkeypatch.setattr(charts, "vl_convert", None)
    assert main([str(run)]) == 0
    html = (run / "report.html").read_text()
    assert "No charts: they need vl-convert (pip install vl-convert-python)" in html
    assert "1 epochs, loss 2.000 to 1.000, top-1 90.00 % in the end." in html


@pytest.mark.parametrize(
    ("task", "changes", "said", "absent"),
    [
        ("dynamic", {"top1": {"float": 98.1, "int8": 98.33}, "base": "integer reference"}, "98.33", "PTQ"),
        ("weight_only", {"top1": {"float": 98.1, "int8": 98.33}, "int8_mac_share": None}, "98.33", "in integers</dt>"),
        ("evaluate", {"top1": {"float": 98.1}, "size_bytes": {"float": 1}, "latency_ms": {}}, "float top-1", "QAT"),
        ("evaluate", {"top1": {"int8": 98.33}, "size_bytes": {"int8": 1}, "latency_ms": {"int8": 1.0}}, "98.33", "QAT"),
        ("qat", {"latency_ms": {"int8": 0.75}}, "0.750", "faster"),
    ],
)
def test_every_task_has_a_page(run, task, changes, said, absent):
    shutil.rmtree(run / "record")
    (run / "results.json").write_text(json.dumps({**RESULTS, "task": task, **changes}))
    assert main([str(run)]) == 0
    for name in ("report.html", "report.md"):
        text = (run / name).read_text()
        assert said.replace("float top-1", "98.10") in text
        assert absent not in text


def test_each_stage_stands_beside_the_one_before_and_the_one_that_departs_is_marked(run):
    base = {"name": "fake-quant", "top1": 98.0, "agreement": 100.0, "max_steps": 0.0, "mean_steps": 0.0}
    same = {**base, "name": "integer reference", "agreement_before": 100.0, "mean_steps_before": 0.0}
    off = {"name": "runtime", "top1": 90.0, "agreement": 91.5, "max_steps": 7.0, "mean_steps": 2.0,
           "agreement_before": 91.25, "mean_steps_before": 2.125}  # fmt: skip
    failed = {"passed": False, "failures": ["runtime: agreement 91.50 %, need 99 %"], "departure": "conv3 (4 %)"}
    (run / "results.json").write_text(json.dumps({**RESULTS, "parity": [base, same, off], **failed}))
    assert main([str(run)]) == 0
    html, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert '<th scope="row">runtime <strong>departs</strong></th>' in html
    assert "| runtime **departs** | 90.00 | 91.50 | 7.0 | 2.000 | 91.25 | 2.125 |" in text
    for page in (html, text):
        assert page.count("departs<") + page.count("departs**") == 1
        assert "The first stage that differs at all is runtime" in page
        assert "First layer that departs: conv3 (4 %)" in page


def test_the_card_says_more_than_numbers(run):
    more = {
        "notes": ["weights: 8 -> 7 bits, why"], "seconds": {"qat": 12.25}, "latency_batch_size": 4,
        "coverage": {"runtime": "runtime 1", "integer": 41, "in_float": ["Softmax s"], "islands": []},
    }  # fmt: skip
    (run / "results.json").write_text(json.dumps({**RESULTS, **more}))
    assert main([str(run)]) == 0
    html, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert "0.23 points above float, n = 360" in html
    for page in (html, text):
        for part in ("8 -&gt; 7 bits" if page is html else "8 -> 7 bits", "qat 12.2", "batch of 4", "98.4 – 100.0",  # noqa: RUF001
                     "runtime 1: 41 operators on integers, 1 in float: Softmax s"):  # fmt: skip
            assert part in page


def test_what_an_operator_runs_inside_its_remark_and_its_scale(run):
    assert main([str(run)]) == 0
    html, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    for page in (html, text):
        assert "integers: 7 bits, not 8" in page
    assert '+ batchnorm</span> <span class="soft">+ relu</span>' in html
    assert 'data-v="808"' in html  # 8/8 bits sort as numbers
    assert html.count('<svg class="curve"') == 1  # of the one operator whose quantizer is known
    assert "| block1.conv + batchnorm + relu |" in text
    assert "`▁█`" in text


def test_images_of_report_md_are_found_from_where_it_is(run, tmp_path):
    assert main([str(run)]) == 0
    line = "![a cat; float says a cat, int8 a dog\\|hound]"
    assert f"{line}(record/images/7.png)" in (run / "report.md").read_text()
    assert main([str(run), "-o", str(tmp_path / "to" / "here")]) == 0
    assert f"{line}(../../run/record/images/7.png)" in (tmp_path / "to" / "here" / "report.md").read_text()


class Elements(HTMLParser):
    """Every element that a screen reader has to name, and what names it."""

    def __init__(self) -> None:
        super().__init__()
        self.unnamed: list[str] = []
        self.path: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        named = {
            "img": given.get("alt"), "th": given.get("scope"), "input": "label" in self.path,
            "svg": given.get("aria-label") or given.get("role") == "img", "html": given.get("lang"),
        }  # fmt: skip
        if tag in named and not named[tag]:
            self.unnamed.append(f"{' > '.join(self.path)} > {tag} {given}")
        if tag not in ("img", "input", "meta", "link", "br", "path", "circle"):
            self.path.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        while self.path and self.path.pop() != tag:
            pass


def test_a_screen_reader_can_name_everything(run):
    assert main([str(run)]) == 0
    html = (run / "report.html").read_text().split('<script type="module">')[0]  # without the drawing library
    found = Elements()
    found.feed(html)
    assert found.unnamed == []
    assert html.count("<table") == html.count("<caption>")
    assert all(spec["description"] for spec in (json.loads(s.split("</script>")[0]) for s in html.split('"spec">')[1:]))


def test_further_targets_stand_below_the_ladder(run):
    stage = {"name": "openvino 1.0", "top1": 97.25, "agreement": 99.5, "max_steps": 2.0, "mean_steps": 0.25}
    (run / "results.json").write_text(json.dumps({**RESULTS, "also": {"openvino": stage}}))
    assert main([str(run)]) == 0
    assert '<th scope="row">also openvino: openvino 1.0</th><td>97.25</td>' in (run / "report.html").read_text()
    assert "| also openvino: openvino 1.0 | 97.25 | 99.50 | 2.0 | 0.250 |  |  |" in (run / "report.md").read_text()


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


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
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
        assert page.locator(".chart svg").count() == 5
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


def test_a_browser_shows_images_and_folds_the_graph(run, opened):
    main([str(run)])
    with opened(run / "report.html", 1280, "light") as page:
        image = page.get_by_alt_text("a cat; float says a cat, int8 a dog|hound")
        assert image.evaluate("i => i.complete && i.naturalWidth") == 1
        module = page.locator("details").first
        assert module.locator("svg.graph circle.int").first.is_visible()
        module.locator("summary").click()
        assert not module.locator("svg.graph").is_visible()
        learned = page.locator(".chart").last.locator(".role-legend-label text")
        assert learned.all_text_contents() == ["learned", "observed"]


def test_paper_is_white_and_shows_what_is_folded(run, opened):
    main([str(run)])
    with opened(run / "report.html", 1280, "dark") as page:
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate(COLOR) == "rgb(255, 255, 255)"
        assert page.locator("details:not([open])").count() == 0
        assert not page.locator("#theme").is_visible()
