"""The presets' settings next to those of the methods' authors, and the docs' table of them.

    python tests/configs/test_presets.py

prints the table that docs/methods.md must contain.
"""

from pathlib import Path

import pytest

from asap_jax.configs import presets, rules
from asap_jax.host.errors import UserError
from asap_jax.methods import METHODS, STRATEGIES
from asap_jax.searching import stages

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"
# The authors' searches on CIFAR-10, from their public code (ASAP's from its paper): batch, epochs,
# omega's initial and final learning rate, its weight decay, alpha's learning rate; their other
# settings; and why ours differ.
PUBLISHED = {
    "asap": ("96", "50", "0.025 to 0.001", "3e-4", "1e-3", "", ""),
    "asap_pac": ("-", "-", "-", "-", "-", "", "a schedule for a proof; never searched with"),
    "darts": ("64", "50", "0.025 to 0.001", "3e-4", "3e-4", "", ""),
    "darts_plus": ("?", "?", "?", "?", "?", "", "no public code: DARTS' settings"),
    "beta_darts": (
        *("64", "100", "0.025 to 0.001", "3e-4", "3e-4", ""),
        "the code's, for NAS-Bench-201's space; here DARTS' space and epochs",
    ),
    "snas": (
        *("64", "150", "0.025 to 0.001", "3e-4", "3e-4"),
        "drop-path 0.3, cost 0.01",
        "0.01 is the code's value for the logarithmic penalty by samples, and the one that its "
        "README's name of the run has; the README's command says 0.0015. On one GPU that code "
        "moves the alphas by SGD, on several by Adam, as here",
    ),
    "gdas": ("256", "250", "0.025 to 0.001", "5e-4", "3e-4", "Nesterov", ""),
    "drnas": (
        *("64", "50", "0.1 to 0", "3e-4", "6e-4", ""),
        "two stages of 25, 20 cells of 36 channels; in the code one cosine runs through both",
    ),
    "edas": ("?", "?", "?", "?", "?", "", "not public: ASAP's"),
    "parsec": ("?", "?", "?", "?", "?", "", "no code is public: DARTS' settings"),
    "magnitude": ("96", "50 to 70", "0.025 to 0.001", "3e-4", "1e-3", "", "the shortest of them"),
    "accum_grad": ("96", "50 to 70", "0.025 to 0.001", "3e-4", "1e-3", "", "the shortest of them"),
    "nap": ("?", "?", "?", "?", "?", "", "not public: ASAP's"),
    "dso_nas": (
        *("128", "220", "0.05, then 0.1", "1e-4", "0.1", "Nesterov"),
        "100 epochs of pretraining at 0.05, then 120; the code clips each gradient at 2, here "
        "omega's norm at 5",
    ),
    "pc_darts": (
        *("256", "50", "0.1 to 0", "3e-4", "6e-4", ""),
        "the paper's cosine ends at 0, the code's at 0.001",
    ),
    "p_darts": ("96", "75", "0.025 to 0", "3e-4", "6e-4", "", "three stages of 25"),
    "pr_darts": (
        *("128", "100", "0.025 to 0.01", "3e-4", "6e-4", ""),
        "nine cycles of 15 or 10 epochs; in the code the batch grows from 24 to what the GPU's "
        "memory holds, at most 128",
    ),
    "enas": (
        *("160", "150", "0.05 to 0.0005", "2e-4", "0.0035", "Nesterov"),
        "the code's cosine restarts after 10, 30 and 70 epochs, here it does not; it also has an "
        "auxiliary head, dropout and drop-path",
    ),
    "random": (
        *("64", "100", "0.025 to 0.001", "3e-4", "-", ""),
        "the code clips at 0.25 unless told otherwise, here at 5; it searches DARTS' space, here "
        "ASAP's",
    ),
    "evolution": (
        *("-", "-", "-", "-", "-", ""),
        "the authors train every architecture anew; here shared weights, as in `random`",
    ),
}


def number(value: float) -> str:
    """0.025, 3e-4, 0: as written in the table."""
    if 0 < value < 0.001 or value == 0.001:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:g}"


def settings(name: str) -> tuple[str, ...]:
    """The first six columns of PUBLISHED, for the preset."""
    search = presets.get_config(name).search
    omega, extra = search.omega, []
    alpha = search.strategy.get("learning_rate", search.alpha.learning_rate)
    if omega.nesterov:
        extra.append("Nesterov")
    if search.drop_path:
        extra.append(f"drop-path {search.drop_path:g}")
    if search.cost_weight:
        extra.append(f"cost {search.cost_weight:g}")
    return (
        str(search.batch_size),
        str(search.epochs),
        f"{omega.learning_rate:g} to {omega.final_learning_rate:g}",
        number(omega.weight_decay),
        "-" if name in ("random", "evolution") else number(alpha),
        ", ".join(extra),
    )


def table() -> str:
    """Markdown: a row per method."""

    def told(batch, epochs, rate, decay, alpha, extra):
        if batch in "?-":
            return {"?": "not public", "-": "none"}[batch]
        more = f"; {extra}" if extra else ""
        return f"{batch}; {epochs}; {rate}; {decay}; {alpha}{more}"

    lines = [
        "| preset | here: batch; epochs; omega's rate; its decay; alpha's rate | the authors | "
        "remarks |",
        "|---|---|---|---|",
    ]
    for name, (*published, remark) in PUBLISHED.items():
        ours = told(*settings(name))
        theirs = told(*published)
        same = "the same" if ours == theirs else theirs
        lines.append(f"| `{name}` | {ours} | {same} | {remark} |")
    return "\n".join(lines)


def test_the_docs_hold_the_table():
    assert table() in DOCS.read_text(), f"run python {Path(__file__).name} and put its table there"


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_at_the_papers_size_has_its_authors_settings(name):
    *published, remark = PUBLISHED[name]
    for ours, theirs in zip(settings(name), published, strict=True):
        assert ours == theirs or remark, (name, ours, theirs)


@pytest.mark.parametrize("size", ["paper", "digits", "cifar10_small", "nb201"])
@pytest.mark.parametrize("name", list(METHODS))
def test_fair_is_one_budget_for_all(size, name):
    asap = presets.get_config(size).search
    fair = presets.get_config(f"{size},{name},fair").search
    assert fair.omega.to_dict() == asap.omega.to_dict()
    assert fair.batch_size == asap.batch_size
    assert (fair.drop_path, fair.cost_weight) == (0, 0)
    most = 3 * -(-asap.epochs // 3)  # P-DARTS has three stages of equal length
    assert asap.epochs <= fair.epochs <= (most if name == "p_darts" else asap.epochs)
    if size != "paper":  # smaller sizes have no other settings
        assert fair.to_dict() == presets.get_config(f"{size},{name}").search.to_dict()


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_takes_the_options_of_every_preset(name):
    """A space may set one to None whose default is a number."""
    for size in presets.SIZES:
        for fair in ("", ",fair"):
            search = presets.get_config(f"{size},{name}{fair}").search
            stages.make_strategy(search, stages.make_space(search), 4)
    assert search.space == "nasbench201"


def test_a_strategy_of_ones_own_is_a_word_too(monkeypatch):
    def mine(space, epochs, steps_per_epoch, *, rate=0.5, start: int | None = None):
        raise AssertionError("not built")

    monkeypatch.setitem(STRATEGIES, "mine", mine)
    config = presets.get_config("tiny,mine")
    assert config.search.strategy.to_dict() == {"name": "mine", "rate": 0.5, "start": None}
    config.search.strategy.start = 3
    with pytest.raises(TypeError):
        config.search.strategy.start = "later"
    rules.check(config)


def test_the_word_stands_anywhere_and_alone():
    for name in ("gdas,fair", "fair,gdas", "paper,fair,gdas"):
        assert presets.get_config(name).search.batch_size == 96
    assert presets.get_config("fair") == presets.get_config("paper")
    assert presets.get_config("gdas").search.batch_size == 256
    with pytest.raises(UserError, match=r"did you mean 'fair'"):
        presets.get_config("gdas,fare")


if __name__ == "__main__":
    print(table())
