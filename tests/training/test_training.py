"""`fit`: the same bits however often it is killed, and a stop, in words, when a loss is no number."""

import copy
import math
import signal
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranked import seen_by_dropout

from onestep_bench.data.pixels import to_unit
from onestep_bench.errors import OnestepError
from onestep_bench.methods import Adam
from onestep_bench.seeds import Draw, sample_labels, sample_noise
from onestep_bench.training import source as source_room
from onestep_bench.training.config import TrainConfig
from onestep_bench.training.loop import fit
from onestep_bench.training.source import Source

# 230 steps, of which every second has a log row.
CONFIG = TrainConfig(kimg=0.92, batch_size=4, lr=1e-2, ema_halflife_kimg=0.05, hflip=True)


class Killed(Exception):
    pass


def images(n=10):
    return torch.randint(0, 256, (n, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def source(n=10, noise=False):
    pairs = sample_noise(0, range(n), (1, 2, 2)) if noise else None
    return Source(images(n), torch.arange(n), pairs, "cpu")


@pytest.mark.parametrize("parts", [1, 2])
def test_rows_that_come_while_training_are_the_same_rows(monkeypatch, parts):
    resident = source(noise=True)
    monkeypatch.setattr(source_room, "_fits", lambda device, sizes: False)
    streamed = source(noise=True)
    size = 8 // parts
    # Part of a step, as one of several processes would have it, a resumption, and steps in any order.
    places = [(step, part) for step in range(6) for part in range(parts)] + [(step, 0) for step in (7, 8, 9, 3, 3, 20)]
    for step, part in places:
        asked = draw(step=step, batch_size=8, rows=slice(part * size, (part + 1) * size))
        expected, found = (data.batch(asked, hflip=True) for data in (resident, streamed))
        for name in ("images", "labels", "noise"):
            assert torch.equal(getattr(found, name), getattr(expected, name))


def networks():
    """A student with dropout and a buffer, and a critic."""
    torch.manual_seed(0)
    student = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Dropout(0.3), torch.nn.Conv2d(2, 1, 1))
    student.register_buffer("count", torch.zeros(()))
    return {"student": student, "critic": torch.nn.Conv2d(1, 1, 1)}


def two_losses(nets, kill_at=None):
    """A student that denoises, and a critic that watches every second step; killed, if so wished, inside a step."""

    def objective(batch, draw):
        noisy = batch.images + draw.normal("noise", batch.images.shape[1:])
        yield (nets["student"](noisy) - batch.images).square().mean(), "student"
        nets["student"].count += 1
        if draw.step == kill_at:
            raise Killed
        if draw.step % 2:
            yield (nets["critic"](noisy.detach()) - draw.uniform("u").mean()).square().mean(), "critic"

    return objective


def run(tmp_path, kill_at=None, seed=7, config=CONFIG):
    """Train fresh networks, or go on from the checkpoint; returns the networks, their average and the rows."""
    nets = networks()
    ema = copy.deepcopy(nets["student"])
    rows = fit(
        two_losses(nets, kill_at),
        nets,
        source(),
        config,
        seed=seed,
        ema=ema,
        checkpoint=tmp_path / "checkpoint.pt",
        checkpoint_seconds=0,
    )
    return nets, ema, list(rows)


def simple(nets, factor_at=None, factor=1.0):
    """One loss; from one step on it is multiplied by `factor`."""

    def objective(batch, draw):
        loss = (nets["student"](batch.images) - batch.images).square().mean()
        yield loss * (factor if factor_at is not None and draw.step >= factor_at else 1.0), "student"

    return objective


def assert_same(module, other):
    state, expected = module.state_dict(), other.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("kills", [[1], [100], [117], [30, 31, 229]], ids=str)
def test_a_killed_run_ends_in_the_same_bits(tmp_path, undisturbed, kills):
    for step in kills:
        with pytest.raises(Killed):
            run(tmp_path, kill_at=step)
    nets, ema, rows = run(tmp_path)
    expected_nets, expected_ema, expected_rows = undisturbed
    for name in nets:
        assert_same(nets[name], expected_nets[name])
    assert_same(ema, expected_ema)
    assert [(row.step, row.kimg, row.lr, row.losses, row.passes) for row in rows] == [
        (row.step, row.kimg, row.lr, row.losses, row.passes) for row in expected_rows
    ]
    assert rows[-1].passes == {"student": pytest.approx(3 * CONFIG.kimg)}  # its critic is a single layer


def test_a_run_that_began_before_passes_were_counted_tells_none(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=100)
    state = torch.load(tmp_path / "checkpoint.pt")
    del state["watch"]["passes"]
    for row in state["rows"]:
        del row["passes"]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(Killed):
        run(tmp_path, kill_at=200)
    _, _, rows = run(tmp_path)
    assert [row.passes for row in rows] == [{}] * len(rows)


def interrupted(tmp_path, objective, nets, ema, **options):
    """Train until the objective interrupts, with no other checkpoint unless options say so; what it says."""
    arguments = {"ema": ema, "checkpoint": tmp_path / "checkpoint.pt", "checkpoint_seconds": 1e9} | options
    with pytest.raises(KeyboardInterrupt) as caught:
        list(fit(objective, nets, source(), CONFIG, seed=7, **arguments))
    return str(caught.value)


def ctrl_c(objective, at, times=1):
    """The objective, interrupted between its two losses of one step."""

    def interrupted(batch, draw):
        for number, item in enumerate(objective(batch, draw)):
            yield item
            for _ in range(times if (draw.step, number) == (at, 0) else 0):
                signal.raise_signal(signal.SIGINT)

    return interrupted


@pytest.mark.parametrize("step", [0, 100, 117])
def test_an_interrupted_run_keeps_its_whole_steps_and_says_how_to_go_on(tmp_path, undisturbed, step):
    nets = networks()
    said = interrupted(tmp_path, ctrl_c(two_losses(nets), step), nets, copy.deepcopy(nets["student"]))
    done = round((step + 1) * 0.004, 2)
    assert said == f"training stopped at {done:g} of 0.92 kimg; run this again to go on from there"
    assert torch.load(tmp_path / "checkpoint.pt")["done"] == step + 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again, ema, rows = run(tmp_path)
    for name in again:
        assert_same(again[name], undisturbed[0][name])
    assert_same(ema, undisturbed[1])
    assert [row.losses for row in rows] == [row.losses for row in undisturbed[2]]


def test_an_interrupt_between_two_steps_keeps_them(tmp_path, undisturbed):
    nets = networks()
    arguments = {"ema": copy.deepcopy(nets["student"]), "checkpoint": tmp_path / "checkpoint.pt"}
    rows = fit(two_losses(nets), nets, source(), CONFIG, seed=7, **arguments)
    assert [next(rows).step for _ in range(3)] == [2, 4, 6]
    with pytest.raises(KeyboardInterrupt, match=r"stopped at 0\.02 of"):
        rows.throw(KeyboardInterrupt())
    assert torch.load(tmp_path / "checkpoint.pt")["done"] == 6
    assert_same(run(tmp_path)[0]["critic"], undisturbed[0]["critic"])


def test_a_second_interrupt_leaves_half_a_step_out(tmp_path, undisturbed):
    nets = networks()
    said = interrupted(tmp_path, ctrl_c(two_losses(nets), 100, times=2), nets, copy.deepcopy(nets["student"]))
    assert "stopped at 0 of 0.92 kimg" in said
    assert not (tmp_path / "checkpoint.pt").exists()
    nets = networks()
    ema = copy.deepcopy(nets["student"])
    said = interrupted(tmp_path, ctrl_c(two_losses(nets), 100, times=2), nets, ema, checkpoint_seconds=0)
    assert "stopped at 0.4 of 0.92 kimg" in said
    assert torch.load(tmp_path / "checkpoint.pt")["done"] == 100
    assert_same(run(tmp_path)[0]["critic"], undisturbed[0]["critic"])


def test_an_interrupt_where_nothing_is_kept_promises_nothing(tmp_path):
    nets = networks()
    assert interrupted(tmp_path, ctrl_c(two_losses(nets), 3), nets, None, checkpoint=None) == ""


def test_a_finished_run_is_not_run_again(tmp_path, undisturbed):
    run(tmp_path)
    nets, _, rows = run(tmp_path, kill_at=0)
    assert_same(nets["student"], undisturbed[0]["student"])
    assert len(rows) == 115


def test_a_consumer_may_stop_and_go_on(tmp_path, undisturbed):
    nets = networks()
    arguments = {"seed": 7, "checkpoint": tmp_path / "checkpoint.pt", "checkpoint_seconds": 0}
    rows = fit(two_losses(nets), nets, source(), CONFIG, ema=copy.deepcopy(nets["student"]), **arguments)
    assert [next(rows).step for _ in range(3)] == [2, 4, 6]
    rows.close()
    assert_same(run(tmp_path)[0]["critic"], undisturbed[0]["critic"])


def test_rows_tell_the_progress(undisturbed):
    rows = undisturbed[2]
    assert [row.step for row in rows] == [*range(2, 231, 2)]
    assert rows[-1].kimg == CONFIG.kimg
    assert all(row.loss == row.losses["student"] for row in rows)
    assert all(later.seconds >= row.seconds > 0 for row, later in pairwise(rows))
    assert rows[-1].loss < rows[0].loss


def test_another_seed_trains_other_weights(tmp_path, undisturbed):
    nets, _, _ = run(tmp_path, seed=8)
    assert not torch.equal(nets["student"][0].weight, undisturbed[0]["student"][0].weight)


def test_a_damaged_checkpoint_is_named(tmp_path, refuses):
    run(tmp_path)
    content = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    with refuses(str(tmp_path / "checkpoint.pt"), "damaged", "delete it"):
        run(tmp_path)


def test_a_checkpoint_of_another_configuration_is_named(tmp_path, refuses):
    run(tmp_path)
    with refuses(str(tmp_path / "checkpoint.pt"), "another configuration"):
        run(tmp_path, config=TrainConfig(kimg=0.92, batch_size=4, lr=2e-2))


def draw(step=0, seed=0, batch_size=4, rows=None):
    return Draw(seed, step, batch_size=batch_size, rows=rows or slice(0, batch_size), progress=0.0)


@given(seed=st.integers(0, 2**40), step=st.integers(0, 10**9))
def test_a_batch_is_a_function_of_seed_and_step(seed, step):
    warm = source()
    warm.batch(draw(step=3), hflip=True)
    batch, again = (served.batch(draw(step, seed), hflip=True) for served in (warm, source()))
    assert torch.equal(batch.images, again.images)
    assert torch.equal(batch.labels, again.labels)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 25])
def test_every_image_is_seen_once_an_epoch(batch_size):
    served = source()
    seen = torch.cat([served.batch(draw(step, batch_size=batch_size), hflip=False).labels for step in range(40)])
    epochs = seen[: len(seen) // 10 * 10].reshape(-1, 10)
    assert (epochs.sort(1).values == torch.arange(10)).all()
    assert not (epochs == epochs[0]).all()


def test_images_come_with_their_labels_and_noise():
    batch = source(noise=True).batch(draw(), hflip=False)
    assert torch.equal(batch.images, to_unit(images())[batch.labels])
    assert torch.equal(batch.noise, sample_noise(0, range(10), (1, 2, 2))[batch.labels])


def test_images_without_labels_or_noise():
    batch = Source(to_unit(images()), None, None, "cpu").batch(draw(), hflip=True)
    assert (batch.labels, batch.noise) == (None, None)


def test_a_mirrored_image_takes_its_noise_along():
    data = torch.randn(400, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    batch = Source(data, torch.arange(400), 2 * data, "cpu").batch(draw(batch_size=400), hflip=True)
    assert torch.equal(batch.noise, 2 * batch.images)
    kept = (batch.images == data[batch.labels]).flatten(1).all(1)
    mirrored = (batch.images == data[batch.labels].flip(-1)).flatten(1).all(1)
    assert (kept ^ mirrored).all()
    assert 170 < kept.sum() < 230  # within three deviations of half


def recorded(accumulate):
    """Gradients of one step, and all its draws."""
    nets, seen = networks(), []
    nets["student"].eval()

    def objective(batch, draw):
        integers = draw.integers("t", 1, 100)
        seen.append(torch.cat([batch.images.flatten(1), draw.normal("n", (3,)), integers[:, None]], dim=1))
        error = nets["student"](batch.images) - draw.uniform("u", 2, 3)[:, None, None, None]
        yield error.square().mean(), "student"

    config = TrainConfig(kimg=0.008, batch_size=8, accumulate=accumulate, hflip=True)
    (row,) = fit(objective, nets, source(), config, seed=0)
    return [parameter.grad for parameter in nets["student"].parameters()], torch.cat(seen), row.loss


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_micro_batches_see_together_what_one_batch_sees(accumulate):
    gradients, seen, loss = recorded(accumulate)
    expected_gradients, expected_seen, expected_loss = recorded(1)
    assert torch.equal(seen, expected_seen)
    assert loss == pytest.approx(expected_loss)
    torch.testing.assert_close(gradients, expected_gradients)


def test_what_is_dropped_is_another_in_every_step_and_the_same_in_every_run():
    first, second = seen_by_dropout()
    assert not torch.equal(first, second)
    assert torch.equal(seen_by_dropout()[1], second)


def test_only_the_named_network_is_stepped():
    nets = networks()
    before = copy.deepcopy(nets["critic"])

    def objective(batch, draw):
        yield nets["critic"](nets["student"](batch.images)).square().mean(), "student"

    list(fit(objective, nets, source(), TrainConfig(kimg=0.02, batch_size=4), seed=0))
    assert_same(nets["critic"], before)


def test_one_loss_may_step_several_networks():
    nets = networks()
    before = copy.deepcopy(nets)

    def objective(batch, draw):
        yield nets["critic"](nets["student"](batch.images)).square().mean(), ("student", "critic")

    rows = list(fit(objective, nets, source(), TrainConfig(kimg=0.02, batch_size=4, accumulate=2), seed=0))
    for name in nets:
        pairs = zip(nets[name].parameters(), before[name].parameters(), strict=True)
        assert not any(torch.equal(after, parameter) for after, parameter in pairs)
    assert rows[-1].losses.keys() == {"student"}


def test_warm_up_and_decay():
    config = TrainConfig(kimg=10, batch_size=100, lr=1.0, warmup_kimg=1)
    assert [config.rate(step) for step in (0, 4, 9, 10, 99)] == pytest.approx([0.1, 0.5, 1, 1, 1])
    config = TrainConfig(kimg=10, batch_size=100, lr=2.0, lr_decay="cosine")
    assert [config.rate(step) for step in (0, 25, 50, 100)] == pytest.approx([2, 1 + math.sqrt(0.5), 1, 0])
    config = TrainConfig(kimg=10, batch_size=100, lr=2.0, lr_decay="linear")
    assert [config.rate(step) for step in (0, 25, 50, 99, 100)] == pytest.approx([2, 1.5, 1, 0.02, 0])
    both = TrainConfig(kimg=10, batch_size=100, lr=1.0, warmup_kimg=1, lr_decay="cosine")
    assert both.rate(0) == pytest.approx(0.1)
    assert both.rate(50) == pytest.approx(0.5)


def test_the_rate_is_what_the_optimiser_steps_by():
    nets = networks()
    config = TrainConfig(kimg=0.4, batch_size=4, lr=1e-3, warmup_kimg=0.2, lr_decay="cosine")
    before = nets["student"][0].weight.clone()
    moved = []
    for row in fit(simple(nets), nets, source(), config, seed=0):
        assert row.lr == config.rate(row.step - 1)
        moved.append((nets["student"][0].weight - before).abs().max().item())
        before = nets["student"][0].weight.clone()
    assert moved[0] == pytest.approx(config.rate(0), rel=0.01)  # Adam's first step is the rate itself
    assert moved[0] < moved[40] / 10
    assert moved[-1] < moved[40] / 10


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_gradients_are_clipped_by_their_norm(clip):
    nets = networks()
    list(fit(simple(nets), nets, source(), TrainConfig(kimg=0.004, batch_size=4, clip=clip), seed=0))
    norm = torch.cat([parameter.grad.flatten() for parameter in nets["student"].parameters()]).norm().item()
    assert norm == pytest.approx(clip, rel=1e-3) if clip else norm > 1e-2


def test_the_average_follows_its_formula():
    nets = networks()
    ema = copy.deepcopy(nets["student"])
    config = TrainConfig(kimg=0.4, batch_size=4, lr=1e-2, ema_halflife_kimg=0.02)
    expected = ema[0].weight.double()
    for step, _ in enumerate(fit(simple(nets), nets, source(), config, seed=0, ema=ema)):
        decay = min(0.5 ** (4 / 20), (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * nets["student"][0].weight.double()
        torch.testing.assert_close(ema[0].weight.double(), expected, rtol=1e-4, atol=1e-6)
    assert step == 99


def test_no_average_is_the_weights_as_they_are():
    nets = networks()
    ema = copy.deepcopy(nets["student"])
    config = TrainConfig(kimg=0.04, batch_size=4, lr=1e-2, ema_halflife_kimg=0, ema_rampup=0.05)
    for _ in fit(simple(nets), nets, source(), config, seed=0, ema=ema):
        assert_same(ema, nets["student"])


def averaged(tmp_path, config, kill_at=None):
    """As `run`, with a copy of the student for each of the config's averages."""
    nets = networks()
    averages = {halflife: copy.deepcopy(nets["student"]) for halflife in (config.ema_halflife_kimg, *config.emas)}
    own = averages[config.ema_halflife_kimg]
    further = {halflife: averages[halflife] for halflife in config.emas}
    kept = {"checkpoint": tmp_path / "checkpoint.pt", "checkpoint_seconds": 0}
    list(fit(two_losses(nets, kill_at), nets, source(), config, seed=7, ema=own, averages=further, **kept))
    return nets, averages


@pytest.mark.parametrize("optimizer", ["adam", "radam", "adamw"])
def test_a_killed_run_ends_in_the_same_bits_with_any_optimiser_and_several_averages(tmp_path, optimizer):
    own = {"optimizer": optimizer, "weight_decay": 0.1, "lr_decay": "linear", "emas": (0.0, 0.01, 0.2)}
    config = replace(CONFIG, kimg=0.12, **own)
    expected_nets, expected = averaged(tmp_path / "undisturbed", config)
    for step in (5, 21):
        with pytest.raises(Killed):
            averaged(tmp_path / "killed", config, kill_at=step)
    nets, averages = averaged(tmp_path / "killed", config)
    assert averages.keys() == expected.keys() == {0.05, 0.0, 0.01, 0.2}
    for halflife in averages:
        assert_same(averages[halflife], expected[halflife])
        assert halflife == 0 or not torch.equal(averages[halflife][0].weight, nets["student"][0].weight)
    assert_same(averages[0.0], nets["student"])
    for name in nets:
        assert_same(nets[name], expected_nets[name])


def test_a_further_average_is_what_a_training_with_it_would_end_in(tmp_path):
    config = replace(CONFIG, kimg=0.12)
    _, averages = averaged(tmp_path / "a", replace(config, emas=(0.01,)))
    _, single = averaged(tmp_path / "b", replace(config, ema_halflife_kimg=0.01))
    assert_same(averages[0.01], single[0.01])


def adam(moments, gradient, step, lr, betas=(0.9, 0.99), eps=1e-8):
    """What Adam (Kingma and Ba 2015) takes from a weight at a step (1-based); moments are updated in place."""
    for place, power in enumerate((gradient, gradient**2)):
        moments[place] += (1 - betas[place]) * (power - moments[place])
    mean, square = (moment / (1 - beta**step) for moment, beta in zip(moments, betas, strict=True))
    return lr * mean / (square.sqrt() + eps)


def radam(moments, gradient, step, lr, betas=(0.9, 0.99), eps=1e-8):
    """As `adam`, by Algorithm 2 of Liu et al. 2020: without the square root until its variance is tractable."""
    whole = adam(moments, gradient, step, lr, betas, eps)
    longest = 2 / (1 - betas[1]) - 1
    length = longest - 2 * step * betas[1] ** step / (1 - betas[1] ** step)
    if length <= 5:
        return lr * moments[0] / (1 - betas[0] ** step)
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return whole * math.sqrt(ratio)


@pytest.mark.parametrize("optimizer", ["adam", "radam", "adamw"])
def test_steps_are_those_of_the_papers(optimizer):
    nets = {"student": torch.nn.Linear(3, 1, bias=False, dtype=torch.float64)}
    expected = nets["student"].weight.detach().clone()
    decay, moments = 0.3, [torch.zeros_like(expected) for _ in range(2)]

    def objective(batch, draw):
        weight = nets["student"].weight
        yield ((weight - torch.arange(3)) ** 2).sum(), "student"

    options = {"optimizer": optimizer, "weight_decay": decay, "betas": (0.9, 0.99), "lr_decay": "linear"}
    config = TrainConfig(kimg=0.1, batch_size=4, lr=0.05, **options)
    for row in fit(objective, nets, source(), config, seed=0):
        gradient = 2 * (expected - torch.arange(3))
        if optimizer == "adamw":
            expected = expected * (1 - row.lr * decay)
        else:
            gradient = gradient + decay * expected
        expected = expected - {"radam": radam}.get(optimizer, adam)(moments, gradient, row.step, row.lr)
        torch.testing.assert_close(nets["student"].weight.detach(), expected)
    assert row.step == 25
    assert row.lr == pytest.approx(0.05 / 25)


def test_the_averages_half_life_may_be_a_share_of_the_images_seen():
    config = TrainConfig(kimg=40, batch_size=100, ema_rampup=0.05, ema_halflife_kimg=1.0)
    # At 10 kimg the half-life is 0.5 kimg, five steps; at 40 it would be 2 kimg and is held at 1, ten steps.
    assert config.ema_decay(99) == pytest.approx(0.5 ** (1 / 5))
    assert config.ema_decay(399) == pytest.approx(0.5 ** (1 / 10))
    assert config.ema_decay(0) < 0.1
    with pytest.raises(OnestepError, match="ema_rampup"):
        TrainConfig(kimg=1, ema_rampup=-0.1)


def test_the_average_keeps_the_buffers_last_seen(undisturbed):
    nets, ema, _ = undisturbed
    assert ema.count == nets["student"].count == 230


def test_a_network_may_have_an_adam_of_its_own():
    """Adam's first step is its learning rate, whatever the gradient; with betas of 0 every step is."""
    nets = networks()
    before = nets["critic"].bias.item()
    config = TrainConfig(kimg=0.008, batch_size=4, lr=1e-3)
    rows = list(fit(two_losses(nets), nets, source(), config, seed=0, adams={"critic": Adam(0.1, (0.0, 0.0))}))
    assert rows[-1].lr == 1e-3
    assert abs(nets["critic"].bias.item() - before) == pytest.approx(1e-4, rel=1e-3)  # one step of two is the critic's


def test_the_log_tells_the_first_loss_a_network_was_given():
    nets = networks()

    def objective(batch, draw):
        for value in (1, 5):
            yield 0 * nets["student"](batch.images).mean() + value, "student"

    (row, *_) = fit(objective, nets, source(), TrainConfig(kimg=0.008, batch_size=4), seed=0)
    assert row.losses == {"student": 1.0}


FACTORS = {"nan": math.nan, "infinite": math.inf, "exploding": 1e6}


# Every second step has a row of the log: the loss of one that has none must not get into a checkpoint either.
@pytest.mark.parametrize(
    ("factor", "step"), [*((factor, 57) for factor in FACTORS.values()), (math.nan, 56)], ids=[*FACTORS, "unlogged"]
)
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(tmp_path, factor, step, refuses):
    nets, checkpoint = networks(), tmp_path / "checkpoint.pt"
    arguments = {"seed": 0, "checkpoint": checkpoint, "checkpoint_seconds": 0, "name": "slimmest-flow"}
    with refuses("slimmest-flow", "student loss", f"at step {step}", str(checkpoint)):
        list(fit(simple(nets, step, factor), nets, source(), CONFIG, **arguments))
    nets = networks()
    rows = list(fit(simple(nets), nets, source(), CONFIG, **arguments))
    assert [row.step for row in rows] == [*range(2, 231, 2)]
    assert all(math.isfinite(row.loss) and row.loss < 10 for row in rows)


def test_a_run_that_stops_before_its_first_checkpoint_promises_none(tmp_path, refuses):
    nets = networks()
    with refuses("at step 0") as caught:
        list(fit(simple(nets, 0, math.nan), nets, source(), CONFIG, seed=0, checkpoint=tmp_path / "checkpoint.pt"))
    assert "kept" not in str(caught.value)


def test_a_large_first_loss_is_no_explosion():
    nets = networks()
    assert len(list(fit(simple(nets, 0, 1e5), nets, source(), CONFIG, seed=0))) == 115


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kimg": 0}, "positive"),
        ({"kimg": math.nan}, "positive"),
        ({"lr": -1.0}, "positive"),
        ({"ema_halflife_kimg": -1.0}, "ema_halflife_kimg"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"emas": [-1]}, "emas"),
        ({"emas": 5}, "list of half-lives"),
        ({"emas": [0, 0.0]}, "differ"),
        ({"emas": [500]}, "ema_halflife_kimg=500"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": "0.1"}, "dropout"),
        ({"augment": 12}, "augment"),
        ({"optimizer": "radm"}, "did you mean 'radam'"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"precision": {"student": "half"}}, "'half'"),
        ({"batch_size": 0}, "positive"),
        ({"batch_size": 6, "accumulate": 4}, "must divide"),
        ({"accumulate": 0}, "must divide"),
        ({"lr_decay": "linera"}, "did you mean 'linear'"),
    ],
)
def test_impossible_configurations_are_refused(options, said, refuses):
    with refuses(said):
        TrainConfig(**{"kimg": 1.0} | options)


def test_a_tiny_budget_is_one_step():
    assert TrainConfig(kimg=0.001).steps == 1


@given(seed=st.integers(0, 2**40), index=st.integers(0, 10**6))
def test_noise_and_label_of_a_sample_depend_on_its_index_alone(seed, index):
    among = [index + 1, index, index + 7]
    assert torch.equal(sample_noise(seed, [index], (1, 2, 2))[0], sample_noise(seed, among, (1, 2, 2))[1])
    assert sample_labels(seed, [index], [3, 4, 5])[0] == sample_labels(seed, among, [3, 4, 5])[1]


def test_labels_are_drawn_in_the_proportion_of_the_classes():
    counts = torch.bincount(sample_labels(0, range(1000), [30, 0, 70]), minlength=3)
    assert counts[1] == 0
    assert 250 < counts[0] < 350


class Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_runs_nothing(tmp_path, refuses):
    torch.save({"config": Canary(tmp_path / "ran")}, tmp_path / "checkpoint.pt")
    with refuses("damaged", "delete it"):
        run(tmp_path)
    assert not (tmp_path / "ran").exists()
