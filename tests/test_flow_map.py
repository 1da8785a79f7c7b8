"""Flow maps: jumps and average velocities against the exact map of Gaussian data, derivatives against differences."""

import pytest
import torch
from two_times import Arrays, edm, exact_map, flow_map, gaussian, holds, on_a_path

from onestep_bench.denoiser import EDM, Denoiser, Flow, IdealDenoiser, counting, native_from
from onestep_bench.flow_map import FlowMap, derivative, flow_time, total_derivative
from onestep_bench.models import checkpoints
from onestep_bench.networks.build import build, size_of, sized
from onestep_bench.paths import FLOW, VE, VP, alphas_cumprod
from onestep_bench.samplers import euler, flow_times, push_forward, re_noising, uniform_times

TINY = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "model_channels": 64, "channel_mult": [1, 1]}
TINY |= {"num_blocks": 1, "attn_resolutions": [4]}
ARCHS = ["SongUNet", "DhariwalUNet"]
VP_PATH = VP(alphas_cumprod("cosine", 40))


def perturbed(config, scale=0.05):
    torch.manual_seed(0)
    net = build(config)
    for parameter in net.parameters():
        parameter.data += scale * torch.randn_like(parameter)
    return net


@pytest.mark.parametrize("arch", ARCHS)
def test_a_network_given_a_second_time_answers_as_before(arch):
    net = perturbed(TINY | {"arch": arch}).eval()
    x, t = torch.randn(3, 1, 8, 8), torch.rand(3)
    before, features = net(x, t), net.encode(x, t)
    old = {name: weight.clone() for name, weight in net.state_dict().items()}
    net.add_second_time()
    assert torch.equal(net(x, t, second_labels=torch.rand(3)), before)
    assert torch.equal(net(x, t), before)
    assert all(map(torch.equal, net.encode(x, t), features))
    assert {name for name in net.state_dict().keys() - old.keys()} == {
        f"map_second.map_layer{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias")
    }
    assert all(torch.equal(net.state_dict()[name], weight) for name, weight in old.items())
    net(x, t, second_labels=torch.rand(3)).square().sum().backward()
    assert net.map_second.map_layer1.weight.grad.abs().max() > 0


def test_a_size_is_a_size_with_two_times():
    net = sized("0.05M", 8, 1)
    net.add_second_time()
    assert size_of(net) == "0.05M"
    assert build(net.config).two_times


@pytest.mark.parametrize("arch", ARCHS)
def test_the_second_time_decides_once_it_is_trained(arch):
    net = perturbed(TINY | {"arch": arch, "second_time": True}).eval()
    x, t = torch.randn(3, 1, 8, 8), torch.rand(3)
    assert torch.equal(net(x, t), net(x, t, second_labels=torch.zeros(3)))
    assert (net(x, t) - net(x, t, second_labels=torch.ones(1))).abs().max() > 1e-4


def test_a_network_of_one_time_refuses_a_second(refuses):
    with refuses("one time", "second_time=True"):
        build(TINY | {"arch": "SongUNet"})(torch.zeros(1, 1, 8, 8), torch.zeros(1), second_labels=torch.zeros(1))


def test_a_flow_map_is_kept_as_any_denoiser(tmp_path):
    denoiser = Denoiser(perturbed(TINY | {"arch": "SongUNet", "second_time": True}).eval(), Flow(plain=True))
    checkpoints.save(denoiser, tmp_path)
    again = checkpoints.load(tmp_path)
    assert again.two_times
    x, t, s = torch.randn(2, 1, 8, 8), torch.tensor([0.9, 0.5]), torch.tensor([0.2, 0.1])
    assert torch.equal(FlowMap(again).average(x, t, s), FlowMap(denoiser).average(x, t, s))


def test_plain_time_is_t_itself_and_nothing_else_is_another_flow():
    t = torch.tensor([0.0, 0.4, 1.0])
    assert torch.equal(Flow(plain=True).inputs(t, t)[1], t)
    assert native_from(Flow(plain=True).spec()) == Flow(plain=True)
    assert native_from({"name": "flow"}) == Flow()
    assert Flow().spec() == {"name": "flow"}


@pytest.mark.parametrize("path", [FLOW, VE, VP_PATH], ids=lambda path: path.name)
def test_jumps_are_those_of_gaussian_data_on_every_path(path):
    data, noise, t, s = gaussian()
    flow = exact_map()
    x, t_x, s_x = (on_a_path(data, noise, t), *(path.t_at(FLOW.ratio(level)) for level in (t, s)))
    view = FlowMap(flow.denoiser.on(path))
    torch.testing.assert_close(flow_time(path, t_x), t)
    v_s, v_t = (flow.denoiser.net.spread(level).reshape(-1, 1, 1, 1) for level in (s, t))
    expected = 0.3 * (1 - s).reshape(-1, 1, 1, 1) + v_s / v_t * (x - 0.3 * (1 - t).reshape(-1, 1, 1, 1))
    scale_t, scale_s = ((path.sigma(a) / b).reshape(-1, 1, 1, 1) for a, b in ((t_x, t), (s_x, s)))
    torch.testing.assert_close(view.jump(x * scale_t, t_x, s_x), expected * scale_s)
    torch.testing.assert_close(x - (t - s).reshape(-1, 1, 1, 1) * flow.average(x, t, s), expected)


def test_a_jump_to_the_same_level_stays_and_its_velocity_is_the_denoisers():
    arrays = Arrays("meanflow")
    flow, x, t = flow_map(arrays), arrays["x"], arrays["t"]
    torch.testing.assert_close(flow.jump(x, t, t), x)
    assert torch.equal(flow.average(x, t, t), flow.denoiser(x, t, want="velocity"))


def test_jumps_follow_the_probability_flow_of_the_same_network():
    """The exact map's velocities at s = t, walked in many steps, end where its jump does."""
    flow, noise = exact_map(), gaussian()[1]
    far = euler(flow.denoiser, noise, uniform_times(4000))
    torch.testing.assert_close(push_forward(flow.denoiser, noise, uniform_times(1)), far, rtol=0, atol=1e-3)
    for steps in (2, 7):
        torch.testing.assert_close(
            push_forward(flow.denoiser, noise, uniform_times(steps)),
            push_forward(flow.denoiser, noise, uniform_times(1)),
        )


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_push_forward_makes_the_samples_of_the_released_meanflow(steps):
    arrays = Arrays("meanflow")
    denoiser = flow_map(arrays).denoiser
    with counting(denoiser) as counter:
        holds(push_forward(denoiser, arrays["e"], uniform_times(steps)), arrays[f"sample/{steps}"])
    assert counter.calls == steps


def test_push_forward_of_one_time_is_ddim():
    denoiser = IdealDenoiser(gaussian(5)[0])
    noise, times = gaussian(8)[1], flow_times(VE, 5)
    torch.testing.assert_close(push_forward(denoiser, noise, times), euler(denoiser, noise, times))


def test_re_noising_makes_the_samples_of_the_released_consistency_models():
    arrays = Arrays("consistency")
    noise, levels = arrays["cm/sample/noise"], arrays["cm/sigmas"]
    times = torch.cat([levels[arrays["cm/sample/index"][:-1]], torch.zeros(1, dtype=torch.float64)])
    made = re_noising(edm(arrays, "student", boundary=0.002), noise[0], times, fresh=list(noise[1:]))
    holds(made, arrays["cm/sample/result"])


def test_noise_that_is_drawn_again_is_a_function_of_the_sample_alone():
    denoiser = IdealDenoiser(gaussian(5)[0])
    noise, times = gaussian(6)[1], flow_times(VE, 3)
    made = re_noising(denoiser, noise, times)
    torch.testing.assert_close(re_noising(denoiser, noise[[4, 1]], times), made[[4, 1]])
    assert torch.equal(made, re_noising(denoiser, noise, times))
    seen = []

    class Watched:
        path, native = VE, denoiser.native

        def __call__(self, x, t, labels=None, *, want="x0"):
            seen.append(x)
            return torch.zeros_like(x)

    re_noising(Watched(), noise, times)
    again = torch.stack([(x / t).flatten() for x, t in zip(seen, times, strict=False)])
    assert torch.corrcoef(again).fill_diagonal_(0).abs().max() < 0.25  # 192 numbers
    assert again.std(dim=1).sub(1).abs().max() < 0.2


def test_samples_of_a_flow_map_with_new_noise_have_the_data_s_spread():
    flow, noise = exact_map(), gaussian(200)[1]
    made = re_noising(flow.denoiser, noise, uniform_times(3))
    assert made.mean().item() == pytest.approx(0.3, abs=0.03)
    assert made.std().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("native", [Flow(plain=True), EDM()], ids=["flow", "edm"])
@pytest.mark.parametrize("arch", ARCHS)
def test_the_derivative_is_a_finite_difference_in_float64(arch, native):
    """Through attention, resampling and dropout, whose mask stays."""
    net = perturbed(TINY | {"arch": arch, "second_time": True, "dropout": 0.3}).double().train()
    flow = FlowMap(Denoiser(net, native).on(FLOW))
    data, noise, t, s = (value[:4] for value in gaussian())
    data, noise = (torch.nn.functional.interpolate(value[:, :1], 8) for value in (data, noise))
    x, v = on_a_path(data, noise, t), noise - data
    torch.manual_seed(3)
    found = total_derivative(flow, x, t, s, v)
    h, ends = 1e-5, []
    for sign in (1, -1):
        torch.manual_seed(3)
        with torch.no_grad():
            ends.append(flow.average(x + sign * h * v, t + sign * h, s))
    expected = (ends[0] - ends[1]) / (2 * h)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())
    assert expected.abs().max() > 1e-2


def test_the_derivative_has_a_gradient_which_is_that_of_a_finite_difference():
    net = perturbed(TINY | {"arch": "SongUNet", "second_time": True}).double().eval()
    flow = FlowMap(Denoiser(net, Flow(plain=True)))
    t, s = (value[:3] for value in gaussian()[2:])
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    h = 1e-5
    moves = derivative(lambda s: flow.average(x, t, s), (s,), (torch.ones_like(s),))[1]
    expected = (flow.average(x, t, s + h) - flow.average(x, t, s - h)) / (2 * h)
    parameters = list(net.parameters())
    # The last bias adds the same at every level.
    gradients = [torch.autograd.grad(u.square().sum(), parameters, materialize_grads=True) for u in (moves, expected)]
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_derivative_leaves_the_mask_to_the_pass_that_follows():
    layer = torch.nn.Dropout(0.5)
    torch.manual_seed(0)
    inside, _ = derivative(layer, (torch.ones(64),), (torch.ones(64),))
    assert torch.equal(layer(torch.ones(64)), inside)
    assert not torch.equal(layer(torch.ones(64)), inside)


def test_the_derivative_is_taken_in_full_precision_and_of_what_is_compiled_too():
    net = perturbed(TINY | {"arch": "SongUNet", "second_time": True}).eval()
    flow = FlowMap(Denoiser(net, Flow(plain=True)))
    data, noise, t, s = (value[:4].float() for value in gaussian())
    x, v = (torch.nn.functional.interpolate(value[:, :1], 8) for value in (data, noise))
    expected = total_derivative(flow, x, t, s, v)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(total_derivative(flow, x, t, s, v), expected)
    net.forward = torch.compile(net.forward, backend="eager")
    flow.average(x, t, s)
    torch.testing.assert_close(total_derivative(flow, x, t, s, v), expected)


def test_the_total_derivative_of_the_exact_map_keeps_meanflows_identity():
    """u = v - (t - s) du/dt (MeanFlow's Eq. 6)."""
    data, noise, t, s = gaussian()
    flow, x = exact_map(), on_a_path(data, noise, t)
    v = flow.average(x, t, t).detach()
    right = v - (t - s).reshape(-1, 1, 1, 1) * total_derivative(flow, x, t, s, v)
    torch.testing.assert_close(flow.average(x, t, s).detach(), right)
