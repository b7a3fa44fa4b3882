"""The HTML report: what stands in it, that it is whole, and how it looks in a real browser at the width of a phone and of a desk."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from click.testing import CliRunner
from support.browser import Browser, find_chromium

import torchquant as tq
from torchquant import cli
from torchquant.report import sections
from torchquant.report.charts import draw, with_own_ids

WIDTHS = {"phone": 390, "desk": 1280}
SECTIONS = ["validation", "receipt", "sensitivity", "comparison", "calibration"]


def small_net():
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3), torch.nn.Flatten(), torch.nn.Softmax(1), torch.nn.Linear(64, 3)
    return torch.nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def results():
    """Everything that a page can show, of one small network; names hold what HTML must escape."""
    net, x = small_net(), torch.randn(24, 1, 8, 8)
    labels = net(x).argmax(1)
    prepared = tq.prepare(net, x, tq.qconfigs.int8_static())
    tq.calibrate(prepared, [x[:12], x[12:]])
    quantized = tq.convert(prepared, x)
    scan = tq.sensitivity_scan(net, x, [x], lambda model: (model(x).argmax(1) == labels).double().mean().item(), tq.qconfigs.int8_static())
    fresh = tq.prepare(net, x, tq.qconfigs.int8_static())
    return {
        "quantized": quantized,
        "validation": tq.validate(net, quantized, (x, labels), runs=2, processes=0),
        "sensitivity": scan,
        "comparison": tq.compare(net, quantized, [x], prepared=prepared),
        "calibration": [tq.methods.clipping_report(prepared, [x]), tq.methods.calibration_curve(fresh, [x[:8], x[8:16], x[16:]])],
    }


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    tq.report.write(path, title="A <small> net & more", **results)
    return path


class Outline(HTMLParser):
    """Ids, headings, captions, and what would make a browser fetch something."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.tags, self.fetched, self.references = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.fetched += [value for name, value in attributes.items() if name in ("src", "srcset", "data", "action")]
        link = attributes.get("href", attributes.get("xlink:href", ""))
        (self.references if link.startswith("#") else self.fetched).append(link)


# What stands in it


def test_sections_appear_for_what_was_given_alone(results, tmp_path):
    for names in (["quantized"], ["validation", "comparison"], ["sensitivity"], ["calibration"]):
        tq.report.write(tmp_path / "report.html", **{name: results[name] for name in names})
        found = re.findall(r'<section id="(\w+)"', (tmp_path / "report.html").read_text())
        assert sorted(found) == sorted("receipt" if name == "quantized" else name for name in names)


def test_the_page_tells_what_the_results_say(page, results):
    text = page.read_text()
    for row in results["quantized"].receipt.rows:
        assert row["layer"] in text and row["kernel"] in text and row["reason"] in text
    assert results["comparison"].sentence.replace("'", "&#39;") in text
    assert f"{results['validation'].quantized['latency_ms']['p99_ms']:.3f} ms" in text
    assert "Bonett and Price 2012" in text and "Pareto plot" in text and "Convergence of the ranges" in text
    ranking = re.search(r'Layers by what quantizing them costs.*?</table>', text, re.DOTALL)[0]
    layers = re.findall(r'<th scope="row" class="c-plain">(.*?)</th>', ranking)
    assert layers == [row["layer"] for row in results["sensitivity"].ranking]


def test_objects_and_their_dicts_give_the_same_page(page, results, tmp_path):
    from_json = {
        name: [json.loads(json.dumps(part.to_dict())) for part in value] if isinstance(value, list) else json.loads(json.dumps(value.to_dict()))
        for name, value in results.items()
        if name != "quantized"
    }
    tq.report.write(tmp_path / "report.html", title="A <small> net & more", quantized=results["quantized"].receipt, **from_json)

    def comparable(path):  # the minute of writing differs
        return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", path.read_text())

    assert comparable(tmp_path / "report.html") == comparable(page)


def test_nothing_is_fetched_and_every_reference_has_its_one_target(page):
    outline = Outline(page.read_text())
    assert [link for link in outline.fetched if link and not link.startswith("data:")] == []
    assert "script" not in outline.tags and "@import" not in page.read_text() and "url(http" not in page.read_text()
    assert len(outline.ids) == len(set(outline.ids))
    assert {reference[1:] for reference in outline.references} <= set(outline.ids)


def test_titles_are_escaped(page):
    text = page.read_text()
    assert "<title>A &lt;small&gt; net &amp; more</title>" in text and "<small>" not in text


def test_tables_have_captions_and_plots_have_descriptions(page):
    text = page.read_text()
    assert text.count("<table>") == text.count("<caption ") > 4
    svgs = re.findall(r"<svg [^>]*>", text)
    assert len(svgs) > 2 and all('role="img"' in svg and re.search(r'aria-label="[^"]{20,}"', svg) for svg in svgs)
    levels = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert levels[0] == 1 and levels.count(1) == 1 and set(levels[1:]) == {2}


def test_limits_of_the_command_become_a_verdict(results, tmp_path):
    document = {**results["validation"].to_dict(), "limits": {"max_fallbacks": 0}, "failures": ["the <limit> broke"]}
    tq.report.write(tmp_path / "report.html", validation=document)
    assert "<li>Failed: the &lt;limit&gt; broke</li>" in (tmp_path / "report.html").read_text()
    tq.report.write(tmp_path / "report.html", validation={**document, "failures": []})
    assert "All limits hold." in (tmp_path / "report.html").read_text()


def test_a_plot_takes_the_pages_colour_and_needs_nothing_from_outside():
    svg = with_own_ids(draw(lambda axes: axes.plot([1, 2], label="a"), 'says "hello" & more'), 7)
    assert svg.startswith('<svg role="img" aria-label="says &quot;hello&quot; &amp; more"')
    assert "currentColor" in svg and "#010203" not in svg and "<metadata" not in svg and "DOCTYPE" not in svg
    head = svg[: svg.index(">")]
    assert "viewBox" in head and " width=" not in head and " height=" not in head
    assert all(name.startswith("c7-") for name in re.findall(r'\bid="([^"]*)"', svg))


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_the_contrast_that_wcag_asks_for(page):
    themes = re.findall(r":root \{(.*?)\}", page.read_text(), re.DOTALL)
    assert len(themes) == 2  # light, dark
    pairs = [(ink, paper) for ink in ("ink", "soft", "accent", "good", "bad") for paper in ("page", "card")]
    pairs += [("good", "good-soft"), ("bad", "bad-soft"), ("ink", "accent-soft"), ("ink", "plain-soft")]
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", theme))
        for ink, paper in pairs:
            low, high = sorted((luminance(colours[ink]), luminance(colours[paper])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, paper)


def test_results_with_less_in_them(tmp_path):
    """A scan without a metric and latency, a converted model alone, a prepared one alone, a model that has no ranges."""
    net, x = small_net(), torch.randn(8, 1, 8, 8)
    prepared = tq.prepare(net, x, tq.qconfigs.int8_static())
    tq.calibrate(prepared, [x])
    quantized = tq.convert(prepared, x)
    linear = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    dynamic = tq.quantize_model(linear, x[:, 0, 0], tq.qconfigs.int8_dynamic())
    scan = tq.sensitivity_scan(net, x, [x], None, tq.qconfigs.int8_static(), mode="each_but_one", measure_latency=False)
    for results in (
        {"sensitivity": scan},
        {"comparison": tq.compare(net, quantized, [x])},
        {"comparison": tq.compare(net, prepared, [x])},
        {"comparison": tq.compare(linear, dynamic, [x[:, 0, 0]]), "quantized": dynamic},
        {"calibration": {"rows": []}},
    ):
        tq.report.write(tmp_path / "report.html", **results)
        text = (tmp_path / "report.html").read_text()
        assert text.count("<section") == len(results) and "None" not in text and "nan" not in text
    ranking = re.search("<thead>.*?</thead>", (tq.report.write(tmp_path / "r.html", sensitivity=scan), (tmp_path / "r.html").read_text())[1])[0]
    assert "drop of the metric" not in ranking and "float ms" not in ranking  # columns without a value are left out


def test_histograms_are_of_the_worst_layers_and_those_not_finite_are_the_worst(results):
    def row(layer, sqnr_db, exact=False, nonfinite=0):
        side = {"sqnr_db": sqnr_db, "exact": exact, "nonfinite": nonfinite, "cosine": 1.0, "max_abs_error": 0.0, "saturation_rate": None}
        return {**results["comparison"].to_dict()["rows"][1], "layer": layer, "prepared": side, "converted": None}

    rows = [row("exact", None, exact=True), row("good", 40.0), row("nan", None, nonfinite=3), row("zeros", None), row("low", 5.0)]
    section = sections.comparison({"rows": rows, "first_bad": "nan", "min_sqnr_db": 15.0, "sentence": "", "remarks": []})
    assert [figure.title for figure in (*section.figures, *section.more_figures)] == ["nan", "zeros", "low", "good", "exact"]
    bars = {row[0]: row[3].text for row in section.tables[0].rows}
    assert bars == {"exact": "exact", "good": "40.0 dB", "nan": "not finite", "zeros": "no signal", "low": "5.0 dB"}


def test_all_histograms_or_the_worst_24_and_the_page_says_which(results, tmp_path):
    row = results["comparison"].to_dict()["rows"][1]
    rows = [{**row, "layer": f"layer{index}", "prepared": {**row["prepared"], "sqnr_db": float(index)}} for index in range(30)]
    comparison = {"rows": rows, "first_bad": None, "min_sqnr_db": 15.0, "sentence": "", "remarks": []}
    pages = []
    for options in ({}, {"all_histograms": True}):
        tq.report.write(tmp_path / "page.html", comparison=comparison, **options)
        pages.append((tmp_path / "page.html").read_text())
    assert [page.count("<svg") for page in pages] == [24, 30]
    assert "of the 24 layers with the lowest SQNR, of 30" in pages[0] and "of all layers" in pages[1]


# Whole or not at all


def test_a_page_that_cannot_be_made_leaves_the_old_one(results, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    for arguments, message in (
        ({}, "give at least one of validation, quantized, sensitivity, comparison, calibration"),
        ({"validation": {"rows": []}}, "validation is not what its section shows, the to_dict() of TorchQuant's own result: it has no 'accuracy'"),
        ({"comparison": {"rows": [{}], "first_bad": None, "min_sqnr_db": 1}}, "comparison is not what its section shows"),
        ({"sensitivity": {"rows": []}}, "SensitivityReport.from_dict"),
        ({"validation": 3}, "validation must be a result of TorchQuant or its to_dict(), got int"),
        ({"quantized": torch.nn.Linear(1, 1)}, "quantized must be a QuantizedModel or a Receipt, got Linear"),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(message)):
            tq.report.write(path, **arguments)
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(RuntimeError, match=r"report: cannot write '.*absent/report.html': No such file or directory"):
        tq.report.write(tmp_path / "absent" / "report.html", quantized=results["quantized"])


# The command


@pytest.fixture
def run():
    return lambda *arguments: CliRunner().invoke(cli.main, ["report", *map(str, arguments)])


@pytest.fixture(scope="module")
def files(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    results["quantized"].save(folder / "net.pt")
    for name in ("validation", "sensitivity", "comparison"):
        (folder / f"{name}.json").write_text(json.dumps(results[name].to_dict()))
    (folder / "clipping.json").write_text(json.dumps(results["calibration"][0].to_dict()))
    (folder / "broken.json").write_text("{")
    (folder / "list.json").write_text("[]")
    (folder / "file_scan.json").write_text(json.dumps({"quantized_sqnr_db": 20.0, "ranking": []}))  # torchquant scan prepared.pt inputs.pt
    return folder


def test_the_command_puts_the_json_of_others_on_a_page(run, files, tmp_path):
    options = [f"--{name}={files / name}.json" for name in ("validation", "sensitivity", "comparison")]
    result = run(files / "net.pt", "--output", tmp_path / "r.html", *options, f"--calibration={files / 'clipping.json'}", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["sections"] == ["receipt", "validation", "sensitivity", "comparison", "calibration"]
    assert facts["bytes"] == (tmp_path / "r.html").stat().st_size
    text = (tmp_path / "r.html").read_text()
    assert re.findall(r'<section id="(\w+)"', text) == SECTIONS and "<h1>net.pt</h1>" in text


def test_the_command_says_what_it_wrote(run, files, tmp_path):
    result = run(files / "net.pt", "--output", tmp_path / "r.html", "--title", "My net")
    assert result.exit_code == 0 and result.output.startswith(f"Wrote {tmp_path / 'r.html'} (") and result.output.endswith(" kB): receipt\n")
    assert "<h1>My net</h1>" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give at least one of validation, quantized"),
        (("absent.pt",), "No such file or directory"),
        (("validation.json",), "cannot load 'validation.json': it is not a TorchScript archive"),
        (("net.pt", "--validation", "broken.json"), "is not JSON"),
        (("net.pt", "--validation", "list.json"), "holds a list, not what a --json option printed"),
        (("net.pt", "--validation", "comparison.json"), "validation is not what its section shows"),
        (("net.pt", "--sensitivity", "file_scan.json"), "is from the scan of a prepared file, which has no metric, latency or size; take that of"),
        (("net.pt", "--calibration", "validation.json"), "calibration is not what its section shows"),
    ],
)
def test_mistakes_in_one_sentence(run, files, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    result = run(*arguments, "--output", tmp_path / "r.html")
    assert result.exit_code != 0 and message in " ".join(result.stderr.split()) and result.stdout == ""
    assert isinstance(result.exception, SystemExit) and not (tmp_path / "r.html").exists()


# In a browser


@pytest.fixture(scope="module")
def browser():
    if find_chromium() is None:
        pytest.skip("Chromium is not installed (Debian package `chromium`): the report was not looked at in a browser")
    with Browser() as browser:
        yield browser


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_the_page_in_a_browser(browser, page, width, dark):
    browser.open(page, width, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "the page itself must not scroll sideways"
    assert browser.evaluate("[...document.querySelectorAll('section')].map(section => section.id)") == SECTIONS
    outside = "[...document.querySelectorAll('h1, h2, p, li, figure, svg, figcaption, .table-box')].filter(e => e.getBoundingClientRect().right > innerWidth)"
    assert browser.evaluate(f"{outside}.map(e => e.outerHTML.slice(0, 80))") == []
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.complaints() == []
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == dark


def test_wide_tables_scroll_in_their_boxes_and_plots_are_readable_on_a_phone(browser, page):
    browser.open(page, WIDTHS["phone"])
    boxes = browser.evaluate("[...document.querySelectorAll('.table-box')].map(box => [box.scrollWidth, box.clientWidth, getComputedStyle(box).overflowX])")
    assert any(inner > outer for inner, outer, _ in boxes) and all(overflow == "auto" for _, _, overflow in boxes)
    heights = browser.evaluate("[...document.querySelectorAll('svg text')].map(text => text.getBoundingClientRect()).filter(r => r.width).map(r => r.height)")
    assert heights and min(heights) >= 7  # the exponents of powers of ten are the smallest
    assert browser.evaluate("getComputedStyle(document.querySelector('svg')).color") == browser.evaluate("getComputedStyle(document.body).color")
