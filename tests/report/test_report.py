"""Laws of the report: it says what was measured, needs nothing else, and can be read by machines and by people."""

import base64
import copy
import csv
import itertools
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest

from robustdistiller.audio.io import write_audio
from robustdistiller.errors import UserError
from robustdistiller.evaluation.conditions import CLEAN, Condition
from robustdistiller.evaluation.metrics import ACCURACY, EER, Scores, TrialScores
from robustdistiller.evaluation.results import AVERAGES, averaged, figures
from robustdistiller.evaluation.statistics import Bootstrap
from robustdistiller.evaluation.tables import write_tables
from robustdistiller.report import charts, write_report
from robustdistiller.report.reading import PALETTE, Measure, shade

MODELS = ["big", "small & <fast>", "log-mel"]
CONDITIONS = [
    CLEAN,
    *(
        Condition(f"{noise}_{snr}dB", f"{noise} {snr} dB", "noise", noise, float(snr), seen=seen)
        for noise, seen in (("white", "seen"), ("babble", "unseen"))
        for snr in (0, 10)
    ),
    *(
        Condition(f"sim_{low}-{high}s", f"T60 {low}–{high} s", "reverb", None, None, "sim", (low, high), "unseen")
        for low, high in ((0.2, 0.5), (0.5, 1.0))
    ),
    *(
        Condition(
            f"babble_{snr}dB_sim", f"babble {snr} dB, T60", "both", "babble", float(snr), "sim", (0.2, 1.0), "unseen"
        )
        for snr in (0, 10)
    ),
]


def made_result():
    """A benchmark of three models on two tasks, from random answers."""
    rng = np.random.default_rng(0)
    clusters = [str(k // 6) for k in range(60)]
    bootstrap = Bootstrap(clusters, 200)
    right: dict = {}
    for k, model in enumerate(MODELS):
        chances = {c.name: 0.9 - 0.2 * k - 0.02 * j for j, c in enumerate(CONDITIONS)}
        right[model] = {
            name: Scores(ACCURACY, (rng.random((2, 60)) < p).astype(float), np.ones(60)) for name, p in chances.items()
        }
    left, other = np.triu_indices(12, 1)
    same = left // 4 == other // 4
    pairs = {
        m: {
            c.name: TrialScores(EER, rng.normal(same * 1.0, size=(2, len(same))), left, other, same) for c in CONDITIONS
        }
        for m in MODELS
    }
    tasks = []
    for name, metric, measured, boot in (
        ("keywords", ACCURACY, right, bootstrap),
        ("speakers", EER, pairs, Bootstrap([str(k // 4) for k in range(12)], 100)),
    ):
        found = figures(name, metric, measured, CONDITIONS, boot, "log-mel")
        tasks.append(
            {
                "name": name, "title": f"Task <{name}>", "kind": "classification", "labelled": True, "slots": ["label"],
                "classes": [["yes", "no & never"]], "utterances": {"train": 10, "valid": 5, "test": 60}, "speakers": 10,
                "metrics": [vars(metric)], "figures": [f.to_dict() for f in found],
                "heads": [{"model": m, "states": ["cnn", "layer 1"], "weights": [0.25, 0.75], "learning_rate": 1e-3,
                           "weight_decay": 0.01, "validation": 0.9} for m in MODELS],
                "confusion": [{"model": m, "condition": c, "slot": "label", "counts": [[8.0, 2.0], [1.0, 9.0]]}
                              for m in MODELS for c in ("clean", "contaminated")],
                "similarity": [{"model": m, "condition": c.name, "cosine": [0.9, 0.7], "cka": [0.95, 0.8]}
                               for m in MODELS for c in CONDITIONS[1:]],
                "audio": [{"utterance": "u", "condition": c.name, "file": f"audio/{c.name}.wav", "answer": "yes"}
                          for c in CONDITIONS],
            }
        )  # fmt: skip
    return {
        "format": 1, "version": "0", "conditions_name": "made", "conditions": [c.to_dict() for c in CONDITIONS],
        "settings": {"train_on": "clean", "seeds": 2, "replicates": 200, "reference": "log-mel",
                     "heads": {"learning_rates": [1e-3], "weight_decays": [0.01]}},
        "models": [{"name": m, "source": m, "kind": "teacher", "digest": "0", "num_parameters": 10**7 * k,
                    "states": ["cnn", "layer 1"]}
                   for k, m in enumerate(MODELS)],
        "averages": {n: {"title": AVERAGES[n], "members": ms} for n, ms in averaged(CONDITIONS).items()},
        "tasks": tasks, "notes": ["keywords: something to know", "OVERLAP: a speaker <both>"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    result = made_result()
    (folder / "benchmark.json").write_text(json.dumps(result))
    for condition in CONDITIONS:
        write_audio(folder / "audio" / f"{condition.name}.wav", 0.1 * np.sin(np.arange(4000) / 9).astype(np.float32))
    write_tables(folder, result)
    write_report(folder)
    return folder


class Reader(HTMLParser):
    """Collects what the page refers to, its text, and elements that are not closed in order."""

    def __init__(self):
        super().__init__()
        self.links, self.words, self.open, self.wrong, self.ids = [], [], [], [], set()

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        self.links += [told[k] for k in ("src", "href", "xlink:href", "data", "action") if told.get(k)]
        self.ids |= {told["id"]} if told.get("id") else set()
        assert tag not in ("script", "iframe", "object", "link")
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.words.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    return reader


def test_the_page_needs_no_network_and_no_script(report):
    page = (report / "report.html").read_text()
    reader = read(page)
    assert not reader.wrong and not reader.open
    for link in reader.links:
        assert link.startswith(("#", "data:audio/", "data:image/svg+xml;base64,"))
        assert not link.startswith("#") or link[1:] in reader.ids
    assert "url(" not in page and "@import" not in page and "http" not in re.sub('data:[^"]*', "", page)


def test_names_are_escaped_everywhere(report):
    page = (report / "report.html").read_text()
    assert "<fast>" not in page and "&lt;fast&gt;" in page and "<keywords>" not in page and "<both>" not in page


def drawings(page):
    return [base64.b64decode(found).decode() for found in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)]


def test_every_drawing_is_well_formed_and_its_words_can_be_read(report):
    found = drawings((report / "report.html").read_text())
    assert len(found) > 10
    words = [
        " ".join("".join(e.itertext()) for e in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"))
        for svg in found
    ]
    curves = next(text for text in words if "SNR (dB)" in text)
    for name in (*MODELS, "white", "babble", "reverberation (sim)", "T60 (s)", "clean", "0.2–0.5"):
        assert name in curves
    assert "url(http" not in "".join(found)


def test_the_picture_of_a_task_has_the_means_of_its_figures(report):
    svg = (report / "keywords.svg").read_text()
    assert all(name in "".join(ET.fromstring(svg).itertext()) for name in ("Noise, mean over its types", *MODELS))


def test_figures_of_the_page_are_those_of_the_benchmark(report):
    values = json.loads((report / "benchmark.json").read_text())
    words = " ".join(read((report / "report.html").read_text()).words)
    for figure in values["tasks"][0]["figures"]:
        assert f"{100 * figure['value']:.1f}" in words
    assert "Not a fair test" in words and "something to know" in words


def test_markdown_has_every_figure_with_its_interval(report):
    values = json.loads((report / "benchmark.json").read_text())
    text = (report / "summary.md").read_text()
    for task in values["tasks"]:
        for figure in task["figures"]:
            cell = f"{100 * figure['value']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"
            if figure["condition"].startswith("mean:") and "against" in figure:
                low, high = (100 * figure[f"difference_{end}"] for end in ("low", "high"))
                cell += f" ({100 * figure['difference_value']:+.1f} [{low:+.1f}, {high:+.1f}]"
            assert cell in text
    assert "<fast>" not in text and "&lt;fast&gt;" in text and "<keywords>" not in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_a_relative_change_has_the_sign_of_its_word():
    about = {"scale": 100.0, "decimals": 1, "higher_is_better": True}
    more = {"error_reduction_value": -1.08, "error_reduction_low": -1.77, "error_reduction_high": -0.59}
    fewer = {"error_reduction_value": 0.12, "error_reduction_low": -0.02, "error_reduction_high": 0.2}
    measure = Measure(about, {}, ())
    assert measure.reduction(more) == ", 108 % more errors [59, 177]"
    assert measure.reduction(fewer) == ", 12 % fewer errors [-2, 20]"


STRANGE = "=1+1 | <script>x</script> [a](b) \x1b[2J"


def test_markup_in_names_reaches_no_page_and_no_table(tmp_path):
    result = copy.deepcopy(made_result())
    text = (
        json.dumps(result).replace('"big"', json.dumps(STRANGE)).replace("Task <keywords>", json.dumps(STRANGE)[1:-1])
    )
    (tmp_path / "benchmark.json").write_text(text)
    write_tables(tmp_path, json.loads(text))
    page = write_report(tmp_path).read_text()
    assert not read(page).wrong and "<script>" not in page
    summary = (tmp_path / "summary.md").read_text()
    assert "<script>" not in summary and "\x1b" not in summary and "[a](b)" not in summary
    for block in re.findall(r"(?:^\|.*\n)+", summary, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    with open(tmp_path / "results.csv", encoding="utf-8") as stream:
        cells = [cell for row in csv.DictReader(stream) for cell in row.values()]
    assert not any(cell and cell[0] in "=+@\t" for cell in cells) and any("1+1" in (cell or "") for cell in cells)


def test_tables_for_machines_agree(report):
    rows = [json.loads(line) for line in (report / "results.jsonl").read_text().splitlines()]
    with open(report / "results.csv", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert (
        len(rows)
        == len(table)
        == sum(len(t["figures"]) for t in json.loads((report / "benchmark.json").read_text())["tasks"])
    )
    for row, line in zip(rows, table, strict=True):
        assert float(line["value"]) == pytest.approx(row["value"], abs=1e-6) and line["condition"] == row["condition"]
    one = next(row for row in rows if row["condition"] == "babble_0dB_sim")
    assert (one["snr_db"], one["t60_low"], one["t60_high"], one["noise"], one["seen"]) == (
        0.0,
        0.2,
        1.0,
        "babble",
        "unseen",
    )


def test_the_report_is_the_same_every_time(report):
    before = (report / "report.html").read_bytes()
    write_report(report)
    assert (report / "report.html").read_bytes() == before


@pytest.mark.parametrize("drop", ["noise", "reverb", "both", "clean"])
def test_a_grid_without_some_kinds_still_makes_a_page(tmp_path, drop):
    result = copy.deepcopy(made_result())
    gone = {c["name"] for c in result["conditions"] if c["kind"] == drop}
    result["conditions"] = [c for c in result["conditions"] if c["kind"] != drop]
    result["averages"].pop(drop, None)
    del result["tasks"][1:]
    for task in result["tasks"]:
        for key in ("figures", "similarity", "audio"):
            task[key] = [row for row in task[key] if row["condition"] not in {*gone, f"mean:{drop}"}]
    (tmp_path / "benchmark.json").write_text(json.dumps(result))
    assert not read(write_report(tmp_path).read_text()).wrong


def test_a_folder_without_a_benchmark_is_told_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"no benchmark\.json"):
        write_report(tmp_path)
    (tmp_path / "benchmark.json").write_text('{"format": 7}')
    with pytest.raises(UserError, match="not a benchmark of this version"):
        write_report(tmp_path)


def luminance(colour):
    red, green, blue = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_shades_darken_steadily_and_their_text_can_be_read():
    shades = [shade(k / 50) for k in range(51)]
    light = [luminance(background) for background, _ in shades]
    assert all(a > b for a, b in itertools.pairwise(light))
    for background, ink in shades:
        low, high = sorted((luminance(background), luminance(ink)))
        assert (high + 0.05) / (low + 0.05) > 3.9


def test_models_differ_in_colour_in_marker_and_in_line():
    assert len(set(PALETTE)) == len(PALETTE) == len(set(charts.MARKERS)) == len(set(charts.LINES))
