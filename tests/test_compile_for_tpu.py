# SPDX-License-Identifier: Apache-2.0
"""scripts/compile_for_tpu.py: the step as the TPU compiler makes it, what fits, and what is printed."""

import importlib
import importlib.util
import inspect
import re
import subprocess
import sys

import pytest

from albert_jax.config import AlbertConfig
from albert_jax.errors import OutOfMemoryError, UserError
from albert_jax.training import planning
from albert_jax.training.chips import slice_of
from albert_jax.training.fitting import TooLarge, expected_memory
from albert_jax.training.planning import Figures
from albert_jax.training.recipe import pretraining
from albert_jax.training.sharding import split_rows
from scripts import compile_for_tpu
from scripts.compile_for_tpu import Compiler, compile_step, fit, formula, parameters, report

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="no libtpu here (scripts/test.sh installs it): nothing is compiled for TPUs",
)
SMALL, ROWS = slice_of("v5e:2x2"), 64
SOURCE = inspect.getsource(planning.compile_figures)


def small(**changes):
    """A recipe whose step compiles in seconds."""
    model = AlbertConfig(
        vocab_size=1024,
        embedding_size=32,
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=64,
    )
    config = pretraining(model)
    config.dtype = "bfloat16"
    config.data.sequence_length, config.data.examples_per_row, config.masking.slots = 64, 2, 16
    config.batch.size, config.batch.unit = ROWS, "rows"
    config.update_from_flattened_dict(changes)
    return config


def cut(parts):
    """The rows in so many micro-batches on each of the four chips."""
    return split_rows(ROWS, SMALL.chips, ROWS // SMALL.chips // parts)


def done(config, parts=1):
    """Figures of the step, which fits."""
    figures = compile_step(config, SMALL, cut(parts))
    assert isinstance(figures, Figures)
    return figures


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where `compiled` is kept."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def compiled(kept):
    """Figures of the small step by number of micro-batches."""
    return {n: Compiler(kept)(small(), SMALL, cut(n)) for n in (1, 4)}


# --- what the TPU compiler makes of the step --------------------------------------------------------------------------


@needs_libtpu
@pytest.mark.parametrize("parts", [1, 4])
def test_gradients_are_summed_once_a_step_and_nothing_is_exchanged_in_a_loop(compiled, parts):
    figures = compiled[parts]
    assert figures.reduced == pytest.approx(4 * parameters(small()), rel=0.01)
    assert figures.in_loops == 0
    assert {group for _, _, group, _ in figures.collectives} <= {0, 4}


@needs_libtpu
@pytest.mark.parametrize("parts", [1, 4])
def test_no_product_is_computed_twice_by_default(compiled, parts):
    assert 1 <= compiled[parts].flops / formula(small(), SMALL, ROWS) <= 1.05


@needs_libtpu
def test_recomputation_is_counted():
    figures = done(small(remat="nothing_saveable"))
    assert 1.2 < figures.flops / formula(small(), SMALL, ROWS) < 1.34


@needs_libtpu
def test_a_batch_warm_up_changes_neither_products_nor_sums(compiled):
    figures = done(small(**{"batch.warmup_steps": 10}), 4)
    assert figures.flops == compiled[4].flops and figures.reduced == compiled[4].reduced and figures.in_loops == 0


@needs_libtpu
def test_memory_is_that_of_the_state_the_rows_and_what_a_step_works_with(compiled):
    state, batch = 12 * parameters(small()), 4 * ROWS / 4 * (4 * 64 + 2 * 16 + 2 * 2 + 1)
    assert compiled[1].arguments == pytest.approx(state + batch, rel=0.1)  # tiles are padded
    assert compiled[1].reused == pytest.approx(state, rel=0.1)
    held = compiled[1].arguments + compiled[1].results - compiled[1].reused
    assert compiled[1].memory == held + compiled[1].temporaries + compiled[1].code > held


@needs_libtpu
def test_what_does_not_fit_is_said_with_what_it_would_need():
    config = small(**{"data.sequence_length": 512, "model.max_position_embeddings": 512})
    config.model.num_attention_heads = 8
    split = split_rows(4096, SMALL.chips, 1024)
    figures = compile_step(config, SMALL, split)
    assert isinstance(figures, TooLarge) and 2 < figures.memory / SMALL.chip.memory < 4
    assert "DOES NOT FIT: the compiler would need" in report(config, SMALL, split, figures)


@needs_libtpu
def test_the_command_prints_everything(monkeypatch, capsys):
    command = ["compile_for_tpu.py", "--config=configs/base.py", "--topology=v4:2x2x1", "--config.batch.size=64"]
    sizes = {"vocab_size": 1024, "num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2}
    sizes |= {"embedding_size": 64, "intermediate_size": 256}
    command += [f"--config.model.{name}={value}" for name, value in sizes.items()]
    monkeypatch.setattr("sys.argv", command)  # where ml_collections looks for overrides
    assert compile_for_tpu.main(command) == 0
    out = capsys.readouterr().out
    for line in (
        r"64 rows of 512 on v4-8 \(v4:2x2x1\): 4 chips, 8 cores, one device a chip; jax [\d.]+, libtpu [\d.]+",
        r"with --config\.batch\.rows_per_device=16 --config\.remat=dots_saveable: 1 micro-batch of 16 rows a chip\n",
        r"memory +fits in 28\.80 GB, 90% of a chip: [\d.]+ GB a device",
        r"arguments [\d.]+ GB, of which [\d.]+ GB become the results of [\d.]+ GB; temporaries [\d.]+ GB; program",
        r"FLOPs +[\d.e+]+ a device, 1\.0\d* x the formula's",
        r"(1\.00|0\.99)\d\d x 4 bytes x [\d,]+ parameters; 0\.0 MB are exchanged inside loops",
        r"\d all-reduce over 4 devices, [\d.]+ MB, in no loop",
        r"compile time [\d.]+ s",
        r"step time +an ESTIMATE, not a measurement:",
        r"at best +[\d.,]+ ms, MFU \d+%",
        r"compiler +[\d.,]+ ms, MFU \d+%",
        r"Assumptions:",
    ):
        assert re.search(line, out), (line, out)


def test_depths_are_compared_by_the_shorter_of_two_compilations(monkeypatch):
    seconds = iter([(5.0, 8.0), (9.0, 9.0), (4.0, 10.0), (6.0, 20.0)])  # 3 layers, 12, 3, 12

    def compiler(config, chips, split):
        wall, cpu = next(seconds)
        return Figures(0, 0, 0, 1.0, 0, 1.0, 1.0, 1.0, 1.0, [], wall, cpu)

    monkeypatch.setattr(compile_for_tpu, "compile_step", compiler)
    assert compile_for_tpu.compare_layers(small(), SMALL, cut(1), 12) == (
        "compiles     at 3 layers 4.0 s, 8.0 s of processor time; at 12 layers 6.0 s, 9.0 s of processor time: "
        "1.50 x, 1.12 x"
    )
    monkeypatch.setattr(compile_for_tpu, "compile_step", lambda *_: TooLarge(1e12))
    with pytest.raises(UserError, match=r"3 layers do not fit v5e-4; lower batch\.rows_per_device"):
        compile_for_tpu.compare_layers(small(), SMALL, cut(1), 12)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 4])
def test_compile_time_does_not_grow_with_depth(parts):
    def seconds(layers):
        # The processor's: other programs' load is not counted.
        return done(small(**{"model.num_hidden_layers": layers}), parts).cpu

    times = {layers: min(seconds(layers) for _ in range(3)) for layers in (12, 48)}
    assert times[48] <= 1.15 * times[12]


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("size", compile_for_tpu.SIZES)
@pytest.mark.parametrize("name", compile_for_tpu.SLICES)
def test_every_size_fits_every_slice_and_keeps_its_promises(size, name):
    chips, recipe = slice_of(name), importlib.import_module(f"configs.{size}").get_config()
    config, _, figures = fit(recipe, chips, recipe.batch.size)
    assert figures.memory <= 0.9 * chips.chip.memory
    assert config.remat == "dots_saveable" and figures.flops <= 1.05 * formula(config, chips, recipe.batch.size)
    assert figures.reduced == pytest.approx(4 * parameters(config), rel=0.01) and figures.in_loops == 0


# --- the search -------------------------------------------------------------------------------------------------------


def pretend(bytes_a_row, remats=("dots_saveable",)):
    """A compiler whose programs need so much for each row that a chip takes, or a hundredth with another remat."""
    tried: list[tuple[str, int]] = []

    def compiler(config, chips, split):
        tried.append((config.remat, split.each))
        memory = bytes_a_row * split.each * (1 if config.remat in remats else 0.01)
        if memory > chips.chip.memory:
            return TooLarge(memory)
        return Figures(0, 0, 0, memory, 0, 1.0, 1.0, 1.0, 1.0, [], 1.0, 1.0)

    return compiler, tried


@pytest.mark.parametrize("rows", [4096, 3392, 53])
@pytest.mark.parametrize("fitting", [1, 2, 3, 7, 19, 40, 1000])
def test_the_search_ends_after_a_few_programs_at_one_that_fits_and_wastes_little(rows, fitting):
    config = importlib.import_module("configs.base").get_config()  # its guess is about 40 rows
    compiler, tried = pretend(0.9 * SMALL.chip.memory / fitting / 1.0001)
    chosen, split, figures = fit(config, SMALL, rows, compiler)
    assert split.each <= fitting and figures.memory <= 0.9 * SMALL.chip.memory and chosen.remat == "dots_saveable"
    assert len(tried) <= 4 and len(tried) == len(set(tried)) and config.batch.rows_per_device == 0
    if len(tried) > 1:  # it was too much at first: then what fits is taken, but for a tenth and for even micro-batches
        even = -(-split.held // (SMALL.chips * -(-split.held // (SMALL.chips * fitting))))
        assert split.each >= min(fitting, even) * 0.5
    assert split.rows == rows and chosen.batch.rows_per_device == split.each


def test_a_tenth_of_the_memory_stays_free(monkeypatch):
    monkeypatch.setattr(compile_for_tpu, "versions", lambda: "jax 1, libtpu 2")
    one = split_rows(4, SMALL.chips, 1)
    for share, fitting in ((0.9, True), (0.91, False)):
        figures = Figures(0, 0, 0, share * 16e9, 0, 1.0, 1.0, 1.0, 1.0, [], 1.0, 1.0)
        said = report(small(), SMALL, one, figures)
        assert ("fits in" in said) is fitting and ("DOES NOT FIT in" in said) is not fitting


def test_a_good_guess_is_compiled_once():
    config = importlib.import_module("configs.base").get_config()
    chips = slice_of("v5e-16")

    def compiler(candidate, chips, split):
        tried.append(split.each)
        expected = expected_memory(candidate, chips.chips, split.each)
        return Figures(0, 0, 0, expected, 0, 1.0, 1.0, 1.0, 1.0, [], 1.0, 1.0)

    tried: list[int] = []
    fit(config, chips, 4096, compiler)
    assert len(tried) == 1


def test_more_is_recomputed_only_where_a_single_row_is_too_large():
    compiler, tried = pretend(2 * SMALL.chip.memory)
    chosen, split, _ = fit(small(), SMALL, 64, compiler)
    assert (split.each, chosen.remat) == (16, "dots_with_no_batch_dims_saveable")
    assert ("dots_saveable", 1) in tried
    with pytest.raises(OutOfMemoryError, match="nothing fits v5e-4: not even one row a device at a time with remat"):
        fit(small(), SMALL, 64, pretend(1e20)[0])


# --- GPUs -------------------------------------------------------------------------------------------------------------


def test_gpus_are_fitted_by_a_formula_that_says_so(monkeypatch, capsys):
    command = ["compile_for_tpu.py", "--config=configs/xxlarge.py", "--topology=8xH100", "--fit"]
    monkeypatch.setattr("sys.argv", command)
    assert compile_for_tpu.main(command) == 0
    out = capsys.readouterr().out
    for line in (
        r"4,096 rows of 512 on 8 x H100",
        r"with --config\.batch\.rows_per_device=(\d+) --config\.remat=dots_saveable: \d+ micro-batches of \1 rows a",
        r"memory +fits in 90% of 80\.00 GB: [\d.]+ GB a device, by a formula .* and untried on H100",
        r"step time +at least [\d,.]+ ms, if the peak of H100 were reached",
    ):
        assert re.search(line, out), (line, out)


def test_what_no_gpu_can_hold_is_said_with_a_remedy(monkeypatch):
    command = ["compile_for_tpu.py", "--config=configs/xxlarge.py", "--topology=L4", "--fit"]
    command += ["--config.model.hidden_size=16384"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(OutOfMemoryError, match="nothing fits 1xL4: not even one row a device at a time"):
        compile_for_tpu.main(command)


def test_the_formula_is_within_its_stated_error_of_the_tables_memory():
    cells = []
    for line in compile_for_tpu.PAGE.read_text(encoding="utf-8").splitlines():
        cell = [part.strip() for part in line.strip("|").split("|")]
        if cell[0] in compile_for_tpu.SIZES:
            config = importlib.import_module(f"configs.{cell[0]}").get_config()
            config.attention = "xla"
            each, planned = int(cell[3].split(" x ")[1]), 1e9 * float(cell[5].split(" of ")[0])
            cells.append(expected_memory(config, slice_of(cell[1]).chips, each) / planned - 1)
    assert len(cells) == 24
    assert max(map(abs, cells)) <= planning.FORMULA_ERROR, cells


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_stands_between_its_marks_and_the_rest_of_the_page_stays(monkeypatch, tmp_path, capsys):
    page = tmp_path / "page.md"
    begin, end = compile_for_tpu.BEGIN, compile_for_tpu.END
    page.write_text(f"before\n\n{begin}\nold\n{end}\n\nafter\n")
    monkeypatch.setattr(compile_for_tpu, "PAGE", page)
    monkeypatch.setattr(compile_for_tpu, "versions", lambda: "jax 1, libtpu 2")
    compiler, _ = pretend(1e8)
    for _ in range(2):
        compile_for_tpu.write_table(("base", "large"), ("v4-8", "v6e-256"), compiler)
    text = page.read_text()
    assert text.startswith(f"before\n\n{begin}\njax 1, libtpu 2.\n") and text.endswith(f"{end}\n\nafter\n")
    assert "old" not in text and "Assumptions:" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| base | v4-8 | 4 (8) |") and lines[5].startswith("| large | v6e-256 | 256 (256) |")
    page.write_text("nothing")
    with pytest.raises(UserError, match="must hold <!-- the table begins -->"):
        compile_for_tpu.write_table((), (), compiler)


def test_the_tables_command_brings_its_utilizations_into_costs_and_recipes(monkeypatch, tmp_path):
    source = compile_for_tpu.ROOT
    for name in ("docs/scaling.md", "albert_jax/training/costs.py", "configs/base.py", "configs/large.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((source / name).read_bytes())
    page, code, recipe = tmp_path / "docs/scaling.md", tmp_path / "albert_jax/training/costs.py", tmp_path / "configs"
    for name, place in (("ROOT", tmp_path), ("PAGE", page), ("COSTS", code)):
        monkeypatch.setattr(compile_for_tpu, name, place)
    kept = {size: dict(of) for size, of in compile_for_tpu.costs.UTILIZATION.items()}
    monkeypatch.setattr(compile_for_tpu.costs, "UTILIZATION", kept)
    compile_for_tpu.write_costs(("base", "large"))  # nothing has changed, and nothing does
    for name in ("albert_jax/training/costs.py", "configs/base.py", "configs/large.py"):
        assert (tmp_path / name).read_bytes() == (source / name).read_bytes()
    lines = page.read_text().splitlines()
    changed = [line.rsplit("|", 2)[0] + "| 40% |" if line.startswith("| base | v4-") else line for line in lines]
    page.write_text("\n".join(changed))
    compile_for_tpu.write_costs(("base", "large"))
    assert '"base": {"v4": 0.40, "v5e"' in code.read_text()
    assert re.search(r"Cost: .*chip-hours: 380 v4, ", (recipe / "base.py").read_text())  # half as many
    assert (recipe / "large.py").read_bytes() == (source / "configs/large.py").read_bytes()


@needs_libtpu
def test_an_interrupted_table_goes_on_with_what_it_has_compiled(monkeypatch, compiled, kept):
    def must_not_compile(*_):
        raise AssertionError("compiled again")

    monkeypatch.setattr(compile_for_tpu, "compile_figures", must_not_compile)
    monkeypatch.setattr(inspect, "getsource", lambda _: SOURCE)  # the digest covers what is replaced here
    again = Compiler(kept)(small(), SMALL, cut(1))
    assert isinstance(again, Figures)
    assert again == compiled[1]._replace(collectives=[[*c[:3], list(c[3])] for c in compiled[1].collectives])
    assert again.reduced == compiled[1].reduced
    with pytest.raises(AssertionError, match="compiled again"):
        Compiler(kept)(small(**{"optimizer.b1": 0.8}), SMALL, cut(1))


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --config=configs/NAME.py and --topology=SLICE, or --table"),
        (["--config=configs/base.py"], "give either"),
        (["--table", "--config=configs/base.py", "--topology=v4-8"], "give either"),
        (["--config=configs/base.py", "--topology=v4-8", "extra"], "'extra' is not a flag"),
        (["--config=configs/lost.py", "--topology=v4-8"], "configs/lost.py"),
        (["--config=configs/base.py:v9", "--topology=v4-8"], "there are v2, v1"),
        (["--config=configs/base.py", "--topolgy=v4-8"], "topolgy"),
        (["--config=configs/base.py", "--topology=v4-8", "--config.batch.sise=3"], "nearest is 'config.batch.size'"),
        (["--config=configs/base.py", "--topology=v4-8", "--compare_layers=-1"], "compare_layers"),
    ],
)
def test_bad_input_is_named(monkeypatch, arguments, message):
    command = ["compile_for_tpu.py", *arguments]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(UserError, match=re.escape(message)):
        compile_for_tpu.main(command)


def test_the_command_finds_the_recipes_from_anywhere(tmp_path):
    script, recipe = compile_for_tpu.__file__, compile_for_tpu.ROOT / "configs" / "xxlarge.py"
    command = [sys.executable, script, f"--config={recipe}", "--topology=v9-8"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: 'v9-8' is neither a TPU slice nor a GPU that is known here; did you mean v4-8?"
    )


def test_a_missing_libtpu_is_named(monkeypatch):
    monkeypatch.setattr(planning.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs the package libtpu; pip install -e '\.\[tpu\]'"):
        compile_step(small(), SMALL, cut(1))


@needs_libtpu
def test_a_shape_that_the_compiler_does_not_know_is_refused():
    with pytest.raises(UserError, match="libtpu has no topology v5e:3x77"):
        compile_step(small(), slice_of("v5e:3x77"), cut(1))


@needs_libtpu
@pytest.mark.parametrize("name", ["v4-8", "v5e-16", "v5p-128", "v6e-16"])
def test_devices_tell_which_slice_they_are(name):
    assert planning.slice_of_devices(planning.topology_devices(slice_of(name))) == slice_of(name)
