"""python -m worldmodel.benchmark: what it times is what it says, with and without the peers."""

import json
import statistics
import sys

import pytest
import torch
from torch import nn

from worldmodel.benchmark import SECTIONS, benchmark, run_section
from worldmodel.benchmarks import collect, dream, limits, peers, pixelcnn, steps, wavenet
from worldmodel.benchmarks import store as store_section
from worldmodel.benchmarks.settings import Settings, count_parameters
from worldmodel.benchmarks.timing import Contestant, Row, Stopwatch, format_rows, race, use_threads
from worldmodel.models.autoregressive.sampling import sample_categorical
from worldmodel.models.autoregressive.wavefront import WavefrontNet
from worldmodel.models.config import NUM_CONTEXT_FRAMES
from worldmodel.world_model import WorldModel

TINY = "tests.tiny_world:Tiny-v0"
CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less of everything."""
    monkeypatch.setattr(collect, "NUM_EPISODES", 2)
    monkeypatch.setattr(limits, "MATRIX_SIZE", 32)
    monkeypatch.setattr(limits, "COPY_BYTES", 1 << 12)
    monkeypatch.setattr(steps, "NUM_DREAMS", (1, 3))
    monkeypatch.setattr(store_section, "NUM_FRAMES", 40)
    monkeypatch.setattr(store_section, "NUM_WINDOWS", 4)
    monkeypatch.setattr(dream, "FRAMES_PER_RUN", 2)
    monkeypatch.setattr(peers, "NUM_FRAMES", 8)
    monkeypatch.setattr(pixelcnn, "GRID", (4, 6))
    monkeypatch.setattr(pixelcnn, "NET_SIZES", ((8, 3),))
    monkeypatch.setattr(pixelcnn, "BATCH_SIZES", (1, 3))
    monkeypatch.setattr(wavenet, "NET_SIZE", (8, 16, 3, 2))
    monkeypatch.setattr(wavenet, "SAMPLES", 24)
    monkeypatch.setattr(wavenet, "BATCH_SIZES", (1, 3))


def test_contestants_take_turns_and_their_ratios_are_to_the_first():
    now, order = [0.0], []

    def taking(name: str, seconds: float, count: int) -> Contestant:
        def run() -> None:
            order.append(name)
            now[0] += seconds if len(order) > 2 else 100  # the first time of each, which is to warm up

        return Contestant(name, run, count, "frame")

    rows = race([taking("a", 4, 2), taking("b", 3, 1)], 3, Stopwatch(CPU, lambda: now[0]))
    assert "".join(order) == "abbaabba"
    assert [row.cpu for row in rows] == [[2] * 3, [3] * 3]
    assert [(row.ratio, row.relative_to) for row in rows] == [(1, "a"), (1.5, "a")]
    assert all(len(row.wall) == 3 for row in rows)


def test_a_row_is_told_by_its_median_and_extremes():
    row = Row("a", "frame", [0.003, 0.001, 0.002, 0.009, 0.002], [0.004] * 5)
    assert row.summary()["cpu_seconds"] == {"median": 0.002, "min": 0.001, "max": 0.009}
    assert row.summary()["rounds"] == 5
    heading, line = format_rows([row]).splitlines()
    assert line.split() == ["a", "frame", "2", "1", "9", "500", "250"] and len(heading) >= len(line)
    assert Row("a", "frame", [1.0], [2.0], uses_wall_time=True).seconds == [2.0]


def test_the_number_of_threads_is_what_it_was_whatever_happens():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), use_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_full_passes_draw_the_codes_that_the_wavefronts_draw(temperature):
    torch.manual_seed(0)
    net = WavefrontNet(nn.Embedding(16, 8), condition_channels=12, hidden_channels=8, num_layers=3)
    condition, uniforms = torch.randn(3, 6, 9, 12), torch.rand(3, 6, 9)
    codes = peers.sample_without_cache(net, condition, uniforms, temperature)
    for sample in (net.sample, net.sample_in_torch):
        assert torch.equal(sample(condition, uniforms, temperature), codes)


@pytest.mark.slow
def test_flops_are_counted_and_set_beside_the_limit_of_the_machine(world_run, small):
    world = WorldModel.load(world_run, precision="float32")
    layer, x = nn.Linear(6, 10), torch.randn(7, 6)
    assert limits.count_flops(lambda: layer(x)) == 2 * 7 * 6 * 10
    settings = Settings(world, "", TINY, 1, (1,), 1)
    found = run_section("limits", settings, {})
    assert [row.fraction_of_limit for row in found.rows] == [None] * len(found.rows)
    products = [row for row in found.rows if row.precision == "float32" and row.flops]
    assert limits.peak_flops(found.rows)["float32"] == max(row.flops / min(row.seconds) for row in products)
    dreamt = run_section("dream", settings, {"float32": 1e9})
    whole, *parts = dreamt.rows
    assert whole.flops == sum(row.flops for row in parts if "torch" not in row.name) > 0
    for row in dreamt.rows:
        assert row.fraction_of_limit == pytest.approx(row.flops / statistics.median(row.seconds) / 1e9)
    assert "of the limit" in format_rows(dreamt.rows) and f"{whole.fraction_of_limit:.0%}" in format_rows(dreamt.rows)


@pytest.mark.slow
def test_a_quick_one_measures_what_most_people_ask_for(world_run, small, tmp_path):
    benchmark(str(world_run), quick=True, threads=1, out=str(tmp_path / "quick.json"))
    result = json.loads((tmp_path / "quick.json").read_text())
    assert list(result["sections"]) == ["limits", "dream", "codec", "training"]
    rows = [row for section in result["sections"].values() for row in section["rows"]]
    assert all(row["rounds"] <= 3 for row in rows) and {"batch 1", "batch 16"} <= {row["name"] for row in rows}


@pytest.mark.parametrize("size", [1_000_000, 3_200_000, 8_000_000])
@pytest.mark.parametrize(("layers", "context"), peers.GPT_SIZES)
@pytest.mark.slow
def test_a_gpt_has_as_many_parameters_as_it_should(size, layers, context):
    pytest.importorskip("transformers")
    gpt = peers.GPTSampler(size, 512, 49, 9, layers, context, CPU)
    assert gpt.parameters == pytest.approx(size, rel=0.05)


@pytest.mark.slow
def test_a_gpt_with_its_cache_draws_what_it_draws_without_one():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    gpt, uniforms = peers.GPTSampler(100_000, 16, 9, 3, layers=2, context=2, device=CPU), torch.rand(9)
    codes = gpt.sample(uniforms)
    assert torch.equal(gpt.sample(uniforms), codes)
    begun = torch.cat([gpt.past, torch.tensor([[0, gpt.action]])], 1)
    with torch.no_grad():
        logits = gpt.network(torch.cat([begun, codes[None, :-1]], 1)).logits[0, begun.shape[1] - 1 :, :16]
    assert torch.equal(sample_categorical(logits, uniforms, 1.0), codes)


@pytest.mark.slow
def test_the_peers_are_measured_where_they_are_installed(world_run, small):
    pytest.importorskip("transformers")
    pytest.importorskip("vector_quantize_pytorch")
    settings = Settings(WorldModel.load(world_run), "", TINY, 1, (1,), 1)
    drawn, quantized = peers.peers(settings), peers.quantizer(settings)
    assert [row.name for row in drawn.rows][3:] == [
        "GPT-2, 10 layers, after 1 frame",
        "GPT-2, 6 layers, after 1 frame",
        "GPT-2, 10 layers, after 6 frames",
    ]
    assert drawn.rows[2].remark == "36 of 36 codes equal ours"
    assert [row.relative_to for row in quantized.rows] == ["train, worldmodel"] * 2 + ["evaluate, worldmodel"] * 2
    assert not any("is not installed" in remark for remark in drawn.remarks + quantized.remarks)


@pytest.mark.slow
def test_every_section_goes_into_a_table_and_the_json_and_a_missing_peer_is_named(
    world_run, small, tmp_path, monkeypatch, capsys
):
    for module in ("transformers", "vector_quantize_pytorch", "lz4"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "lz4.block", raising=False)
    out = tmp_path / "benchmark.json"
    benchmark(str(world_run), repeats=2, batches="1,3", threads=2, env=TINY, out=str(out))
    printed, result = capsys.readouterr().out, json.loads(out.read_text())
    assert list(result["sections"]) == ["limits", *SECTIONS]
    reckoned = {name for name, section in result["sections"].items() if any(row["flops"] for row in section["rows"])}
    assert reckoned == set(result["sections"]) - {"steps", "collect", "store"}
    for name, section in result["sections"].items():
        assert f"{name}\n" in printed
        for row in section["rows"]:
            assert row["name"] in printed and row["ratio"] > 0 and row["wall_seconds"]["median"] > 0
    for section, package in (("peers", "transformers"), ("quantizer", "vector-quantize-pytorch"), ("store", "lz4")):
        line = f"{package} is not installed: needs pip install worldmodel[bench]"
        assert line in result["sections"][section]["remarks"] and printed.count(line) == 1
    world = WorldModel.load(world_run)
    weights = sum(p.numel() for net in (world.vqvae, world.dynamics) for p in net.parameters())
    assert result["parameters"] == count_parameters(world)
    assert sum(result["parameters"].values()) == weights + world.vqvae.quantizer.codebook.numel()
    assert result["versions"]["torch"] == torch.__version__ and result["cores"] > 0


def test_only_the_sections_that_are_asked_for_are_measured_and_earlier_results_stay(
    world_run, store, small, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for only in ("store,codec", "codec"):
        benchmark(str(world_run), only, repeats=1, store=str(store))
    assert "wrote benchmark-2.json" in capsys.readouterr().out
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("benchmark.json", "benchmark-2.json"))
    assert list(first["sections"]) == ["limits", "store", "codec"]
    assert list(second["sections"]) == ["limits", "codec"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"only": "codec,dreams"}, "unknown section 'dreams': expected one of dream, .*did you mean 'dream'"),
        ({"repeats": 0}, "--repeats 1 or more, got 1,16,64 and 0"),
        ({"threads": 100_000}, "threads must be a whole number from 1 to 1024, got 100000"),
        ({"batches": "1,two"}, "--batches must be numbers such as 1,16, .* got 1,two"),
        ({"store": "nowhere"}, "nowhere holds no store.json"),
    ],
)
def test_a_mistake_is_answered_before_anything_is_measured(flags, message, world_run, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        benchmark(str(world_run), **flags, out=str(tmp_path / "benchmark.json"))


def test_a_pixelcnn_is_measured_beside_full_passes_that_draw_the_same_codes(world_run, small):
    section = pixelcnn.pixelcnn(Settings(WorldModel.load(world_run), "", TINY, 1, (1,), 1))
    assert [row.unit for row in section.rows] == ["code"] * 6
    assert section.remarks[:2] == [
        f"8 channels, 3 layers, batch {batch}: {batch * 24} of {batch * 24} codes equal" for batch in (1, 3)
    ]


def test_a_wavenet_is_measured_beside_full_passes_that_draw_the_same_samples(world_run, small):
    section = wavenet.wavenet(Settings(WorldModel.load(world_run), "", TINY, 1, (1,), 1))
    assert [row.unit for row in section.rows] == ["sample"] * 4
    said = ["speed relative to real time: "] * 2 + ["total speed relative to real time: "] * 2
    assert all(row.remark.startswith(begin) for row, begin in zip(section.rows, said, strict=True))
    assert section.remarks[:2] == [f"batch {batch}: {batch * 24} of {batch * 24} samples equal" for batch in (1, 3)]


def test_a_store_of_short_episodes_is_refused(world_run, store, small, monkeypatch):
    monkeypatch.setattr(store_section, "WINDOW_FRAMES", 22)
    with pytest.raises(ValueError, match="has no episode of 22 frames"):
        store_section.store(Settings(WorldModel.load(world_run), str(store), TINY, 1, (1,), 1))


def test_dreams_begin_with_real_frames_and_go_on(world_run):
    dreams = dream.Dreams(WorldModel.load(world_run), 2)
    assert (dreams.state.cache_length == dreams.world.dynamics.config.context_length).all()
    before = dreams.state.codes
    assert dreams.imagine(1).shape == (2, 6, 6)
    assert torch.equal(dreams.state.codes[:, 0], before[:, 1])
    assert NUM_CONTEXT_FRAMES > 1 and dreams.frames == dreams.steps * 2
