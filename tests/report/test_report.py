"""report.html: complete, offline, correct, and available at any time."""

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from asap_jax import GENOTYPES
from asap_jax.configs import presets
from asap_jax.data.augment import Augmentation
from asap_jax.host import workdir
from asap_jax.host.errors import UserError
from asap_jax.host.workdir import claim
from asap_jax.networks.drawings import draw_cells
from asap_jax.report import charts, comparison, page, pictures
from asap_jax.searching.stages import make_space

VOID = {"meta", "link", "img", "br"}
CONFIG = presets.get_config("tiny")
SPACE = make_space(CONFIG.search)


class Page(html.parser.HTMLParser):
    """Checks that tags are closed in order; collects texts, links and sources."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.sources, self.words = [], set(), [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        self.links += [value for key, value in attributes.items() if key.endswith("href")]
        self.sources += [value for key, value in attributes.items() if key == "src"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def weights_at(epoch):
    """Edge 0 of the normal cell is decided by epoch 3, for its last candidate."""
    weights = {cell: np.full(SPACE.shape, 1 / SPACE.shape[1]) for cell in SPACE.cell_types}
    if epoch >= 3:
        weights["normal"][0] = np.eye(SPACE.shape[1])[-1]
    return {cell: each.tolist() for cell, each in weights.items()}


@pytest.fixture
def folder(tmp_path):
    """A search in progress: three epochs, the last line incomplete."""
    claim(tmp_path, json.loads(CONFIG.to_json()))
    with (
        open(tmp_path / "metrics.jsonl", "w") as metrics,
        open(tmp_path / "weights.jsonl", "w") as weights,
    ):
        for epoch in (1, 2, 3):
            record = {"phase": "search", "run": 0, "epoch": epoch}
            numbers = {"train_loss": 2 / epoch, "val_loss": None, "candidates_left": 100 - epoch}
            metrics.write(json.dumps({**record, **numbers, "seconds": 1.5}) + "\n")
            weights.write(json.dumps({**record, "weights": weights_at(epoch)}) + "\n")
        metrics.write('{"phase": "sea')
    (tmp_path / "warnings.txt").write_text("the <cells> collapse\n")
    return tmp_path


def finish(folder):
    GENOTYPES["ASAP"].save(folder / "genotype.json")
    draw_cells(GENOTYPES["ASAP"], [folder / "cells.svg"])
    names = ["cat & dog", "<b>bird</b>"]
    results = {
        "test_accuracy": 0.75,
        "parameters": 12345,
        "multiply_adds": 678,
        "search_seconds": 61.0,
        "train_seconds": 3725.0,
        "device": "cpu",
        "precision": {"search": "float32", "train": "float32"},
        "gap": {"top2": {"gap": 0.125}},
        "latency": {"batch": 4, "seconds": 0.002, "images_per_second": 2000.0},
        "class_accuracy": {names[0]: 1.0, names[1]: None},
        "confusion": [[3, 0], [1, 0]],
        "versions": {"jax": "0"},
    }
    workdir.write_json(folder / "results.json", results)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    augmentation = Augmentation((0.5,) * 3, (0.25,) * 3, pad=1)
    page.keep_samples(folder, images, np.array([0, 1, 0, 1]), augmentation, names)
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.8, 0.2]])
    page.keep_mistakes(folder, images, np.array([0, 1, 0, 1]), probabilities, names)
    page.keep_command(folder, ["--config=configs/search.py:tiny", "--workdir=a b"])


def test_a_page_while_the_run_goes_on(folder):
    text = page.write(folder).read_text()
    seen = Page(text)
    assert {link[1:] for link in seen.links if link.startswith("#")} <= seen.ids
    words = " ".join(seen.words)
    assert "search 0, epoch 3" in words
    assert "decided after epoch 3" in words
    assert SPACE.candidates[-1] in words
    assert "the <cells> collapse" in words  # escaped in the source
    assert "Training" not in words and "Confusion" not in words


def test_the_page_of_a_finished_run(folder):
    finish(folder)
    text = page.write(folder).read_text()
    seen = Page(text)
    words = " ".join(seen.words)
    for expected in ("75.00 %", "12,345", "1 min 1 s", "1 h 2 min", "+12.50 points"):
        assert expected in words
    assert "2,000 (batch of 4 in 2 ms)" in words
    assert "cat & dog" in words and "<b>bird</b>" in words
    assert "'--workdir=a b'" in words
    assert len(seen.sources) == 4 + 3  # samples; all but the first are mistakes


def test_the_page_needs_nothing_else(folder):
    finish(folder)
    text = page.render(folder)
    seen = Page(text)
    assert all(link.startswith(("#", "data:")) for link in seen.links)
    assert all(source.startswith("data:image/png;base64,") for source in seen.sources)
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", text)
    assert "<script" not in text


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"is .* the workdir of a run\?"):
        page.write(tmp_path)


def test_the_worst_mistakes_come_first():
    probabilities = [[0.5, 0.5], [0.1, 0.9], [0.3, 0.7], [0.9, 0.1]]
    assert pictures.most_wrong(probabilities, [0, 0, 0, 0]).tolist() == [1, 2]
    assert pictures.most_wrong(probabilities, [0, 0, 0, 0], 1).tolist() == [1]


def test_a_sample_is_what_the_network_gets_back_in_pixels():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    normalised = (images / 255 - mean) / std
    np.testing.assert_array_equal(pictures.uint8_of(normalised, mean, std), images)


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ([1.0, 2.0, 3.0], 1),
        ([1.0, None, 3.0, 4.0], 2),
        ([float("nan"), float("inf"), 2.0], 1),
        ([None, None], 0),
        ([], 0),
        ([5.0], 1),
        ([0.0, 0.0], 1),
    ],
)
def test_a_chart_leaves_gaps_and_never_fails(values, lines):
    chart = charts.line_chart("a < b", {"series": values})
    Page(chart)
    assert chart.count("<polyline") == lines
    assert "nan" not in chart and "inf" not in chart


def test_ticks_are_round_and_within():
    rng = np.random.default_rng(0)
    for low, span in zip(rng.normal(size=50) * 100, 10 ** rng.uniform(-4, 4, 50), strict=True):
        ticks = charts._ticks(low, low + span)
        assert 2 <= len(ticks) <= 9
        assert low - 1e-6 * span <= min(ticks) and max(ticks) <= low + span * (1 + 1e-6)


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_a_browser_has_nothing_to_complain_of(folder):
    finish(folder)
    path = page.write(folder)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    told = subprocess.run(
        [*command, "--enable-logging=stderr", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in told.stderr
    assert told.stdout.count("<section") == path.read_text().count("<section")


def test_a_training_that_was_judged_by_held_out_images(folder):
    finish(folder)
    results = workdir.read_json(folder / "results.json")
    results["val_accuracy"] = results.pop("test_accuracy")
    workdir.write_json(folder / "results.json", results)
    assert "validation accuracy" in " ".join(Page(page.render(folder)).words)


def test_a_search_alone_is_told_as_done(folder):
    assert "under way" in page.render(folder)
    GENOTYPES["ASAP"].save(folder / "genotype.json")
    words = " ".join(Page(page.render(folder)).words)
    assert "is done; nothing is trained yet" in words and "under way" not in words


def test_names_that_are_no_text(folder):
    """Bytes of file names that are not UTF-8, as Python passes them on."""
    page.keep_command(folder, ["--workdir=caf\udce9"])
    finish(folder)
    results = workdir.read_json(folder / "results.json")
    results["class_accuracy"] = {"caf\udce9": 1.0, "b": None}
    workdir.write_json(folder / "results.json", results)
    assert "caf" in page.write(folder).read_text()


def test_a_later_start_adds_its_command_to_the_first(folder):
    for arguments in (["--config=a"], ["--mode=train", "--config=a"], ["--config=a"]):
        page.keep_command(folder, arguments)
    lines = (folder / "command.txt").read_text().splitlines()
    assert [line.split("asap_jax.main ")[1] for line in lines] == [
        "--config=a",
        "--mode=train --config=a",
    ]


def test_a_space_that_is_not_known_here(folder):
    config = json.loads((folder / "config.json").read_text())
    config["search"]["space"] = "mine"
    (folder / "config.json").write_text(json.dumps(config))
    assert "The space &#x27;mine&#x27; is not known here" in page.render(folder)


def test_every_column_of_the_numbers_is_there(folder):
    with open(folder / "metrics.jsonl", "a") as metrics:
        metrics.write(
            "\n" + json.dumps({"phase": "search", "run": 0, "stage": 1, "epoch": 1}) + "\n"
        )
    assert "<th>stage</th>" in page.render(folder)


def with_prunings(folder):
    """As newer runs note them: all but the last candidate of edge 0 leave, two in one step."""
    lines = [json.loads(line) for line in (folder / "weights.jsonl").read_text().splitlines()]
    last = SPACE.shape[1] - 1
    steps = {1: [[4, "normal", 0, 0]], 3: [[2, "normal", 0, c] for c in range(1, last)]}
    text = [json.dumps(line | {"pruned": steps.get(line["epoch"], [])}) for line in lines]
    (folder / "weights.jsonl").write_text("\n".join(text) + "\n")


def test_each_pruning_is_told_with_its_step(folder):
    with_prunings(folder)
    words = " ".join(Page(page.render(folder)).words)
    assert f"{SPACE.candidates[0]}, epoch 1, step 4" in words
    assert f"{SPACE.candidates[1]}, epoch 3, step 2" in words
    assert words.count("decided in epoch 3, step 2") == 1
    assert len(re.findall(r"\d pruned", words)) == 1  # one edge unfolds
    assert "decided after" not in words


def test_a_run_that_noted_no_steps_tells_the_epochs(folder):
    words = " ".join(Page(page.render(folder)).words)
    assert f"{SPACE.candidates[0]}, epoch 3 " in words
    assert "step" not in words.partition("How the edges were decided")[2].partition("Search")[0]


def test_a_weight_that_is_rounded_to_nothing_is_no_pruning(folder):
    """Where the prunings are noted and there are none, as in DARTS."""
    lines = [json.loads(line) for line in (folder / "weights.jsonl").read_text().splitlines()]
    text = [json.dumps(line | {"pruned": []}) for line in lines]
    (folder / "weights.jsonl").write_text("\n".join(text) + "\n")
    words = " ".join(Page(page.render(folder)).words)
    assert "decided in" not in words and "decided after" not in words


def compared(folder):
    """(cases, page) of two cases with three runs, only one of which has a page of its own."""
    for name, theta in (("a-0", 0.4), ("a-1", 0.4), ("b & c-0", 0.2)):
        config = json.loads(CONFIG.to_json())
        config["search"]["strategy"]["threshold"] = theta
        claim(folder / name, config)
    (folder / "a-1" / "report.html").write_text("")
    cases = {
        "a": [comparison.Run(0, 90.0, folder / "a-0"), comparison.Run(1, 94.0, folder / "a-1")],
        "b & c": [comparison.Run(0, 50.0, folder / "b & c-0")],
    }
    rows = [["a", "92.00 +- 2.83"], ["b & c", "50.00"]]
    path = comparison.write(
        folder / "report.html", "two", "accuracy, %", ["case", "accuracy"], rows, cases
    )
    return path, Page(path.read_text())


def test_a_comparison(tmp_path):
    _, seen = compared(tmp_path)
    words = " ".join(seen.words)
    assert "92.00 +- 2.83" in words and "b & c" in words
    assert "92.00 ± 2.83" in words  # of the seeds themselves
    assert "from 50.00 at the left to 94.00 at the right" in words
    assert [link for link in seen.links if not link.startswith(("#", "data:"))] == [
        "a-1/report.html"
    ]
    assert "search.strategy.threshold : 0.2 (there 0.4)" in words


def test_a_comparison_needs_nothing_else(tmp_path):
    path, seen = compared(tmp_path)
    text = path.read_text()
    assert not seen.sources and "<script" not in text
    assert {link[1:] for link in seen.links if link.startswith("#")} <= seen.ids


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [1.0, 2.0, 5.0]])
def test_a_strip_has_a_dot_for_each_seed(values):
    strip = charts.dot_strip("a < b", values, min(values), max(values))
    Page(strip)
    assert strip.count("<circle") == len(values)
    assert ('class="band"' in strip) == (len(values) > 1)
    assert "nan" not in strip


def test_series_beyond_the_colours_have_dashes_and_keep_their_number():
    names = [f"method{i}" for i in range(20)]
    styles = [charts.stroke(i) for i in range(20)]
    assert len(set(styles)) == 20
    assert charts.stroke(3) == "stroke:var(--c3)"
    some = {name: i for i, name in enumerate(names) if i in (3, 11)}
    chart = charts.line_chart("some", {name: [0, 1] for name in some}, numbers=some)
    for shown in (chart, charts.legend(some), charts.standalone(chart, some)):
        assert all(styles[i] in shown for i in some.values())
        assert styles[0] not in shown


def test_names_of_near_spots_do_not_cover_each_other():
    rng = np.random.default_rng(0)
    discs = [(*rng.uniform(100, 130, 2), 6.0) for _ in range(6)]
    names = [f"method{i}" for i in range(6)]
    places = charts._beside(discs, names)
    for i, (x, y) in enumerate(places):
        for other_x, other_y in places[:i]:
            apart = abs(x - other_x) >= charts.LETTER * 7 or abs(y - other_y) >= charts.LINE
            assert apart
    alone = charts._beside(discs[:1], names[:1])[0]
    assert alone == (discs[0][0] + 8, discs[0][1] + 3.5)
