"""Genotypes: JSON round trips, the published cells and their exact sizes, bad input."""

import json

import jax
import jax.numpy as jnp
import pytest

from asap_jax import GENOTYPES, Context, EvalNetwork, Genotype, count_parameters, multiply_adds
from asap_jax.configs import presets
from asap_jax.host.errors import UserError
from asap_jax.networks.models import side_multiple
from asap_jax.runs import inputs

# Parameters at CIFAR-10 C=36 L=20 and ImageNet C=48 L=14, without auxiliary head; then the head's.
SIZES = {
    "NASNet": (3830950, 5564320, 457994, 1236200),
    "AmoebaNet": (3145078, 4627360, 457994, 1236200),
    "PNASNet": (4481110, 6394912, 494858, 1285352),
    "ENAS": (3859894, 5625952, 457994, 1236200),
    "DARTS_V1": (3169414, 4510432, 476426, 1260776),
    "DARTS_V2": (3349342, 4718752, 476426, 1260776),
    "SNAS_mild": (2661382, 3939328, 476426, 1260776),
    "SNAS_moderate": (2847358, 4312576, 476426, 1260776),
    "SNAS_aggressive": (2313622, 3561952, 476426, 1260776),
    "GDAS_V1": (3368782, 4969216, 476426, 1260776),
    "PDARTS": (3433798, 4944352, 476426, 1260776),
    "PC_DARTS_cifar": (3634678, 5270560, 476426, 1260776),
    "PC_DARTS_image": (3721510, 5342464, 476426, 1260776),
    "XNAS": (3793438, 5260000, 476426, 1260776),
    "ASAP": (2538046, 3829504, 476426, 1260776),
    "MdeNAS": (3783286, 5325760, 476426, 1260776),
    "NAONet-WS": (2921302, None, None, None),
}


def parameters(network, size):
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    plain = Context(reference=True)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, plain), x)
    params = variables["params"]
    head = sum(leaf.size for leaf in jax.tree.leaves(params["auxiliary_head"]))
    return count_parameters(params), head


def test_all_published_cells_are_here():
    assert list(GENOTYPES) == list(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    cifar, imagenet, cifar_head, imagenet_head = SIZES[name]
    count, head = parameters(EvalNetwork(GENOTYPES[name], 10, auxiliary=True), 32)
    assert count == cifar
    assert cifar_head is None or head == cifar_head
    if imagenet is not None:
        network = EvalNetwork(GENOTYPES[name], 1000, 48, 14, stem="imagenet", auxiliary=True)
        assert parameters(network, 64) == (imagenet, imagenet_head)


def test_darts_v2_with_its_auxiliary_head():
    assert sum(parameters(EvalNetwork(GENOTYPES["DARTS_V2"], 10, auxiliary=True), 32)) == 3_825_768


@pytest.mark.parametrize(("channels", "count"), [(44, 3_757_126), (50, 4_827_760), (56, 6_032_386)])
def test_wider_networks_of_the_asap_cell(channels, count):
    """The paper: 3.7M at 44 channels, 6.0M at 50, which requires 56."""
    network = EvalNetwork(GENOTYPES["ASAP"], 10, channels, auxiliary=True)
    assert parameters(network, 32)[0] == count


@pytest.mark.parametrize(("channels", "count"), [(36, 2_287_054), (44, 3_382_422)])
def test_sizes_with_a_convolution_on_the_cells_outputs(channels, count):
    network = EvalNetwork(GENOTYPES["ASAP"], 10, channels, auxiliary=True, output="conv")
    assert parameters(network, 32)[0] == count


@pytest.mark.parametrize(
    ("squeeze", "gates"),
    [
        ("", 0),
        # Two maps of 200 x 50, 400 x 50 and 800 x 100 in cells of 50, 100 and 200 channels.
        ("early", 4 * 20_000 + 5 * 40_000 + 1 * 160_000),
        ("every", 4 * 20_000 + 5 * 40_000 + 5 * 160_000),
    ],
)
def test_sizes_with_squeeze_and_excitation(squeeze, gates):
    """ImageNet with 50 channels: 4.12M, with the gates of XNAS' code 4.56M (the paper: 5.7M)."""
    network = EvalNetwork(
        GENOTYPES["ASAP"], 1000, 50, 14, stem="imagenet", auxiliary=True, squeeze=squeeze
    )
    assert parameters(network, 224)[0] == 4_117_075 + gates


@pytest.mark.parametrize(
    ("stem", "good", "bad"),
    [("cifar", (28, 32, 64, 224), (30, 33)), ("imagenet", (64, 224), (28, 48, 225))],
)
def test_which_sizes_a_network_takes(stem, good, bad):
    cells = 5  # reductions at 1 and 3, and a cell that reads the last one
    network = EvalNetwork(GENOTYPES["ASAP"], 10, 4, cells, stem=stem, auxiliary=True)
    for size in good:
        assert size % side_multiple(cells, stem) == 0
        parameters(network, size)
    for size in bad:
        assert size % side_multiple(cells, stem)
        with pytest.raises(ValueError, match="stays even at each reduction"):
            parameters(network, size)


@pytest.mark.parametrize(
    ("name", "cifar", "imagenet"),
    [("DARTS_V2", 528_359_040, 529_911_552), ("ASAP", 400_652_928, 421_728_960)],
)
def test_published_multiply_adds(name, cifar, imagenet):
    assert multiply_adds(EvalNetwork(GENOTYPES[name], 10), (32, 32, 3)) == cifar
    network = EvalNetwork(GENOTYPES[name], 1000, 48, 14, stem="imagenet")
    assert multiply_adds(network, (224, 224, 3)) == imagenet


@pytest.mark.parametrize("name", GENOTYPES)
def test_round_trip(name, tmp_path):
    genotype = GENOTYPES[name]
    genotype.save(tmp_path / "genotype.json")
    assert Genotype.load(tmp_path / "genotype.json") == genotype


def test_any_number_of_inputs_a_node():
    genotype = Genotype(
        ((), (("skip_connect", 0), ("none", 1), ("skip_connect", 2))), (3,), ((), ()), (2, 3)
    )
    assert Genotype.from_json(genotype.to_json()) == genotype
    network = EvalNetwork(genotype, 3, channels=4, cells=3)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.ones((2, 8, 8, 1)))
    logits, auxiliary = network.apply(variables, jnp.ones((2, 8, 8, 1)))
    assert logits.shape == (2, 3)
    assert auxiliary is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format="other"), "format"),
        (lambda r: r.update(version=3), "version 3"),
        (lambda r: r.pop("reduce"), "lacks reduce"),
        (lambda r: r["normal"][0][0].__setitem__(0, "conv_9x9"), "unknown operation 'conv_9x9'"),
        (lambda r: r["normal"][0][0].__setitem__(1, 2), "input 2 does not exist yet"),
        (lambda r: r.update(normal_concat=[2, 9]), "concatenates nodes"),
        (lambda r: r.update(normal=5), "normal has to be a list of nodes"),
        (lambda r: r["reduce"][0][0].pop(), "reduce has to be a list of nodes"),
        (lambda r: r.update(reduce_concat="x"), "reduce_concat a list of node numbers"),
    ],
)
def test_bad_genotypes_are_named(change, message):
    record = json.loads(GENOTYPES["ASAP"].to_json())
    change(record)
    with pytest.raises(ValueError, match=message):
        Genotype.from_json(json.dumps(record))


def test_genotypes_are_never_evaluated():
    with pytest.raises(ValueError, match="has to be JSON"):
        Genotype.from_json("Genotype(normal=[], normal_concat=[], reduce=[], reduce_concat=[])")


def printed(genotype, style):
    """The cells in the formats of others."""
    flat = {cell: [pair for node in nodes for pair in node] for cell, (nodes, _) in cells(genotype)}
    ranges = {cell: f"range({min(c)}, {max(c) + 1})" for cell, (_, c) in cells(genotype)}
    fields = {
        "normal": flat["normal"],
        "normal_concat": ranges["normal"],
        "reduce": flat["reduce"],
        "reduce_concat": ranges["reduce"],
    }
    if style == "a source file":
        fields |= {f"{cell}_concat": list(c) for cell, (_, c) in cells(genotype)}
        return "DARTS = Genotype(\n" + ",\n".join(f"  {k} = {v}" for k, v in fields.items()) + ")\n"
    call = f"Genotype({', '.join(f'{k}={v}' for k, v in fields.items())})"
    if style == "in order":
        return f"Genotype({', '.join(map(str, fields.values()))})"
    return {
        "printed": call,
        "a line of a log": f"11/12 10:33:01 AM genotype = {call}\n",
        "ours": repr(genotype),
        "JSON": genotype.to_json(),
    }[style]


def cells(genotype):
    return genotype.cells.items()


STYLES = ("printed", "a line of a log", "a source file", "in order", "ours", "JSON")
NB201 = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ["DARTS_V2", "PC_DARTS_cifar", "PDARTS"])
def test_cells_are_taken_as_others_print_them_wherever_cells_are_taken(name, style, tmp_path):
    taken_everywhere(printed(GENOTYPES[name], style), GENOTYPES[name], tmp_path)


def test_nas_bench_201s_names_are_taken_wherever_cells_are_taken(tmp_path):
    genotype = Genotype.from_architecture_string(NB201)
    assert genotype.architecture_string() == NB201
    taken_everywhere(NB201, genotype, tmp_path)


def taken_everywhere(text, genotype, folder):
    assert Genotype.parse(text) == genotype
    (folder / "genotype.json").write_text(text)
    assert Genotype.load(folder / "genotype.json") == genotype
    config = presets.get_config("digits")
    for given in (text, str(folder), str(folder / "genotype.json")):
        config.genotype = given
        assert inputs.find_genotype(config, None) == genotype


@pytest.mark.parametrize(
    "text",
    [
        "Genotype(normal=[__import__('os').abort()], normal_concat=[2])",
        "Genotype(normal=[('skip_connect', 0)], normal_concat=exit(3))",
        "Genotype(normal=open('x', 'w'), normal_concat=range(2, 3))",
        "Genotype(normal=[('skip_connect', 0), ('skip_connect', 1)], normal_concat=range(10**9))",
        "Genotype(normal=[('skip_connect', 0), ('skip_connect', 1)], normal_concat=range(0, 9, 0))",
        "Genotype(**{'normal': []})",
        "Genotype(normal=[('skip_connect', 0)], normal_concat=[2], reduce=[], reduce_concat=[])",
        "Genotype(normal=[('skip_connect', 0), ('skip_connect', 1)], normal_concat=[2])",
        "Genotype(norm=[])",
        "Genotype(1)",
        "Genotype(" + "[" * 5000 + "]" * 5000 + ")",
        "Genotype(normal=[",
        "Genotype()() + Genotype()",
        "a = Genotype(normal=[])\nb = Genotype(normal=[])",
        "Genotype(normal=[]).save('x')",
        "|nor_conv_3x3~0|+|",
        "|nor_conv_9x9~0|",
        "",
    ],
)
def test_what_is_no_cell_is_an_error_and_never_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError):
        Genotype.parse(text)
    (tmp_path / "genotype.json").write_text(text)
    config = presets.get_config("digits")
    config.genotype = str(tmp_path)
    with pytest.raises(UserError, match="holds no genotype that a network can be built from"):
        inputs.find_genotype(config, None)
    assert [path.name for path in tmp_path.iterdir()] == ["genotype.json"]
