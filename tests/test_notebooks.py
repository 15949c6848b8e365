"""The notebooks: stored without outputs, and each runs from start to end."""

import json

import pytest
from command import ROOT

nbformat = pytest.importorskip("nbformat")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Replacements that make a notebook run in seconds: (original, replacement).
SHORTER = {
    "quickstart": [('PRESET = "digits"', 'PRESET = "tiny"')],
    "your_images": [
        ('PRESET = "small"', 'PRESET = "tiny"'),
        ('{"search": {"epochs": 4}, "train": {"epochs": 6}}', "{}"),
    ],
    "methods": [
        ('SIZE = "digits"', 'SIZE = "tiny"'),
        ('{"epochs": 6}', '{"epochs": 2}'),
        ('"asap,random", "seeds": 2', '"asap", "seeds": 1, "baseline": ""'),
    ],
    "reload": [("EPOCHS = 10", "EPOCHS = 2"), ('"digits", data', '"tiny", data')],
}


def named(paths):
    return [pytest.param(path, id=path.stem) for path in paths]


def test_every_notebook_is_run_by_a_test():
    assert {path.stem for path in NOTEBOOKS} == set(SHORTER)


@pytest.mark.parametrize("path", named(NOTEBOOKS))
def test_notebooks_are_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
    title, _, badge = "".join(notebook.cells[0].source).splitlines()[:3]
    assert title.startswith("# ")
    assert badge.startswith(
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    )
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=1) + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("path", named(NOTEBOOKS))
def test_notebooks_run(path, tmp_path):
    client = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    for old, new in SHORTER[path.stem]:
        cells = [cell for cell in notebook.cells if old in cell.source]
        assert len(cells) == 1, old
        cells[0].source = cells[0].source.replace(old, new)
    client.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    assert last.outputs
