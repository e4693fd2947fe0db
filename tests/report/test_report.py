"""Laws of the report: it says what was measured, needs nothing else, and can be read by machines and by people."""

import copy
import itertools
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdistiller.audio.io import write_audio
from robustdistiller.errors import UserError
from robustdistiller.evaluation.conditions import CLEAN, Condition
from robustdistiller.evaluation.metrics import ACCURACY, EER, Scores, TrialScores
from robustdistiller.evaluation.results import AVERAGES, averaged, figures
from robustdistiller.evaluation.statistics import Bootstrap
from robustdistiller.evaluation.tables import write_tables
from robustdistiller.report import write_report
from robustdistiller.report.svg import MARKERS, PALETTE, Canvas, marker, nice_ticks, shade

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
        assert tag not in ("script", "iframe", "object", "link", "img")
        if tag not in ("meta", "br"):
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
        assert link.startswith(("#", "data:audio/"))
        assert not link.startswith("#") or link[1:] in reader.ids
    assert "url(" not in page and "@import" not in page and "http" not in re.sub('data:[^"]*', "", page)


def test_names_are_escaped_everywhere(report):
    page = (report / "report.html").read_text()
    assert "<fast>" not in page and "&lt;fast&gt;" in page and "<keywords>" not in page and "<both>" not in page


def test_every_drawing_is_well_formed_and_stays_on_its_canvas(report):
    drawings = re.findall(r"<svg.*?</svg>", (report / "report.html").read_text(), re.S)
    assert len(drawings) > 20
    for drawing in drawings:
        root = ET.fromstring(drawing)
        width, height = (float(v) for v in root.get("viewBox").split()[2:])
        for element in root.iter():
            sides = [*((key, width) for key in ("x", "cx", "x1", "x2")), *((key, height) for key in ("y", "cy", "y1"))]
            for key, limit in sides:
                if element.get(key):
                    assert -1 <= float(element.get(key)) <= limit + 1, (key, ET.tostring(element))


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
            assert f"{100 * figure['value']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]" in text
    assert "<fast>" not in text and "&lt;fast&gt;" in text and "<keywords>" not in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_tables_for_machines_agree(report):
    import csv

    rows = [json.loads(line) for line in (report / "results.jsonl").read_text().splitlines()]
    with open(report / "results.csv", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert (
        len(rows)
        == len(table)
        == sum(len(t["figures"]) for t in json.loads((report / "benchmark.json").read_text())["tasks"])
    )
    for row, line in zip(rows, table, strict=True):
        assert float(line["value"]) == row["value"] and line["condition"] == row["condition"]
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


@settings(max_examples=80, deadline=None)
@given(st.floats(-1000, 1000), st.floats(0.001, 500), st.integers(3, 8))
def test_ticks_cover_the_data_with_few_round_numbers(low, span, most):
    ticks = nice_ticks(low, low + span, most)
    assert ticks[0] <= low + 1e-6 * span and ticks[-1] >= low + span - 1e-6 * span and len(ticks) <= most + 2
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


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


def test_models_differ_in_colour_and_in_shape():
    assert len(set(PALETTE)) == len(PALETTE) and len(set(MARKERS)) == len(MARKERS)
    drawn = [re.sub("#[0-9a-f]+", "", marker((5, 5), k)) for k in range(len(MARKERS))]
    assert len(set(drawn)) == len(drawn)


def test_titles_in_drawings_are_escaped():
    canvas = Canvas(10, 10, 'a "title" <b>')
    canvas.text((1, 1), "<&>")
    assert ET.fromstring(canvas.render()).get("aria-label") == 'a "title" <b>'
