"""What is fast on a GPU, as far as a CPU can tell: graphs, layouts, and switches that are put back."""

import copy
import os

import pytest
import torch

from onestep_bench import methods, networks
from onestep_bench.denoiser import Denoiser, ddpm_denoiser, edm_denoiser
from onestep_bench.networks import layers
from onestep_bench.paths import VP, alphas_cumprod
from onestep_bench.training import ranks, speed
from onestep_bench.training.config import TrainConfig
from onestep_bench.training.loop import fit
from onestep_bench.training.source import Source
from onestep_bench.training.state import Run

TINY = {"arch": "SongUNet", "img_resolution": 8, "in_channels": 1, "out_channels": 1, "attn_resolutions": [4]}
TINY |= {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 0, "dropout": 0.0}
# Graphs of each: the student's, and one that all networks share which are asked without gradients.
METHODS = {"edm": 1, "sfddm": 2, "progressive": 2, "consistency-distillation": 2}


def net(seed=0):
    """A network that answers more than 0."""
    torch.manual_seed(seed)
    made = networks.build(TINY)
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def losses(name, seed, backend=None, batch=4):
    """Losses of a run of three steps; with a backend, its networks and its teacher are compiled."""
    method = methods.get(name)
    config = method.config(**({"steps": 4} if name == "progressive" else {}))
    teacher = edm_denoiser(net(seed + 1)).eval().requires_grad_(False)
    nets = methods.Nets(method.student(config, net(seed), None, teacher).train(), teacher)
    nets.auxiliary = method.auxiliary(nets, config)
    everything = {"student": nets.student, **nets.auxiliary}
    asked = [*everything.values(), teacher]
    images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    training = TrainConfig(kimg=3 * batch / 1000, batch_size=batch)
    if backend is not None:
        speed.compile_hearts(asked, backend)
    try:
        rows = fit(method.objective(nets, config), everything, Source(images, None, None, "cpu"), training, seed=0)
        return [row.loss for row in rows]
    finally:
        speed.uncompile_hearts(asked)


class Graphs(list):
    """A backend that keeps every graph and runs it as it is."""

    def __call__(self, graph, inputs):
        self.append(graph)
        return graph.forward


@torch._dynamo.config.patch(recompile_limit=4, fail_on_recompile_limit_hit=True)
def test_methods_in_turn_are_all_compiled_each_in_graphs_of_its_own():
    """More networks than torch keeps graphs of one function, at two batch sizes: none is dynamic, none goes without."""
    for turn in range(2):
        for name, count in METHODS.items():
            graphs = Graphs()
            compiled = losses(name, turn, graphs, batch=4 + 4 * turn)
            assert len(graphs) == count
            assert not any(isinstance(size, torch.SymInt) for graph in graphs for size in sizes(graph))
            assert compiled == pytest.approx(losses(name, turn, batch=4 + 4 * turn), rel=1e-6)


def sizes(graph):
    given = [node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder"]
    return [size for value in given if isinstance(value, torch.Tensor) for size in value.shape]


def test_another_number_of_images_has_a_graph_of_its_own():
    made, graphs = net(), Graphs()
    speed.compile_hearts([made], graphs)
    for count in (2, 3):
        made(torch.randn(count, 1, 8, 8), torch.rand(count))
    assert len(graphs) == 2
    assert not any(isinstance(size, torch.SymInt) for graph in graphs for size in sizes(graph))


def test_what_is_compiled_forward_and_backward_has_the_same_losses():
    assert losses("sfddm", 0, "aot_eager") == pytest.approx(losses("sfddm", 0), rel=1e-6)


@pytest.mark.parametrize("native", ["edm", "ddpm"])
def test_a_denoiser_on_any_path_is_one_graph(native):
    """Neither levels nor knots are asked back as numbers, nor paths compared by what they hold."""
    path = VP(alphas_cumprod("linear", 20))
    made = edm_denoiser(net()) if native == "edm" else ddpm_denoiser(net(), alphas_cumprod("cosine", 30))
    denoiser = Denoiser(made.net, made.native, path)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 20.0])
    expected = denoiser(x, t, want="eps")
    torch.compiler.reset()
    compiled = torch.compile(denoiser, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(x, t, want="eps"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_written_norm_is_the_norm_in_the_layout_it_was_given(dtype):
    torch.manual_seed(0)
    x = torch.randn(3, 16, 6, 6).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.rand(16), torch.randn(16)
    exact = torch.nn.functional.group_norm(x.double(), 4, weight.double(), bias.double(), 1e-5)
    written = layers._written_out(x, 4, weight, bias, 1e-5)
    assert written.dtype == dtype
    assert written.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(written.double(), exact, rtol=0, atol=1e-5 if dtype == torch.float32 else 2e-2)


def test_the_norm_is_written_out_for_a_compiler_and_not_for_an_export():
    norm, x = layers.GroupNorm(8, 1e-5), torch.randn(2, 8, 4, 4)
    graphs = Graphs()
    torch.compiler.reset()
    torch.compile(norm, backend=graphs)(x)
    names = {str(node.target) for node in graphs[0].graph.nodes}
    assert any("var_mean" in name for name in names)
    program = torch.export.export(norm, (x,))
    assert any("group_norm" in str(node.target) for node in program.graph.nodes)


def run_of(config, **nets):
    return Run(nets, {}, config, {}, torch.device("cpu"))


@pytest.mark.parametrize(
    ("size", "steps", "pays"),
    [("0.05M", 1000, False), ("0.05M", 30_000, True), ("7.0M", 1000, False), ("7.0M", 50_000, True)],
)
def test_short_runs_of_small_networks_are_not_compiled(size, steps, pays):
    with torch.device("meta"):
        assert speed._pays(networks.sized(size, 32, 3), steps) == pays


def test_nothing_is_changed_on_a_cpu():
    made = net()
    before = {name: weight.stride() for name, weight in made.state_dict().items()}
    with speed.sped_up(run_of(TrainConfig(kimg=1e6), student=made), {"student": made}):
        assert {name: weight.stride() for name, weight in made.state_dict().items()} == before
        assert not any("forward" in vars(module) for module in made.modules())
        assert not torch.backends.cudnn.benchmark


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Function that enters `sped_up` for a run that is on a GPU, as far as it can tell; its compiler is a list."""
    graphs = Graphs()
    plain = speed.compile_hearts
    monkeypatch.setattr(speed, "compile_hearts", lambda networks: plain(networks, graphs))

    def enter(run, networks):
        run.device = torch.device("cuda")
        return speed.sped_up(run, networks)

    return enter


def test_all_that_is_asked_is_channels_last_and_compiled_and_what_is_not_trained_is_put_back(on_a_gpu):
    student, teacher, critic, backbone = edm_denoiser(net()), edm_denoiser(net(1)), net(2), net(3)
    critic.frozen_networks, average = [backbone], copy.deepcopy(student)
    run = run_of(TrainConfig(kimg=1e6), student=student, critic=critic)
    run.averages = {500.0: average}

    def last(module):
        return all(p.is_contiguous(memory_format=torch.channels_last) for p in module.parameters() if p.ndim == 4)

    with on_a_gpu(run, {"student": student, "critic": critic, "teacher": teacher}):
        assert all(map(last, (student, critic, teacher, backbone, average)))
        assert all("forward" in vars(network) for network in (student.net, critic, teacher.net))
        assert "forward" not in vars(average.net)
        assert torch.backends.cudnn.benchmark
    assert [last(module) for module in (student, teacher, backbone)] == [True, False, False]
    assert not any("forward" in vars(network) for network in (student.net, critic, teacher.net))
    assert not torch.backends.cudnn.benchmark


def test_a_run_that_ends_in_an_error_leaves_nothing_compiled(on_a_gpu):
    student = net()
    with pytest.raises(ValueError, match="planted"), on_a_gpu(run_of(TrainConfig(kimg=1e6), student=student), {}):
        raise ValueError("planted")
    assert "forward" not in vars(student)
    assert not torch.backends.cudnn.benchmark


def test_moments_of_another_device_follow_the_layout_of_their_weights(on_a_gpu):
    student = net()
    run = run_of(TrainConfig(kimg=0.001), student=student)
    student(torch.randn(2, 1, 8, 8), torch.rand(2)).square().mean().backward()
    run.optimizers["student"].step()
    before = [state["exp_avg"].clone() for state in run.optimizers["student"].state.values()]
    with on_a_gpu(run, {}):
        pass
    for (weight, state), was in zip(run.optimizers["student"].state.items(), before, strict=True):
        assert state["exp_avg"].stride() == weight.stride()
        assert torch.equal(state["exp_avg"], was)


def test_one_switch_makes_kernels_repeat_themselves(on_a_gpu, monkeypatch):
    monkeypatch.setenv("ONESTEP_DETERMINISTIC", "1")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with on_a_gpu(run_of(TrainConfig(kimg=0.001), student=net()), {}):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_ranks_of_a_machine_share_its_cores_when_they_compile(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    assert ranks.of_machine() == 2
    speed.compile_hearts([], "inductor")
    assert os.environ.pop("TORCHINDUCTOR_COMPILE_THREADS") == "8"
