"""Judges whose weights are not shipped, with stand-ins in their place: what is round the network is checked here."""

import json
import os
import time
from dataclasses import replace

import numpy as np
import pytest
import requests
import torch
from inception_standin import NAME, write
from PIL import Image
from scipy.ndimage import gaussian_filter

from onestep_bench import store
from onestep_bench.compat import import_clip, import_torchvision
from onestep_bench.data.loading import load
from onestep_bench.data.registry import Dataset
from onestep_bench.data.streams import images_at
from onestep_bench.scoring import evaluation, judges, judging, recipe, references
from onestep_bench.scoring.judges import classifier, clip, dinov2, inception, load_extractor
from onestep_bench.scoring.judges.resize import clean_resize
from onestep_bench.scoring.metrics import frechet_from_moments
from onestep_bench.seeds import Draw
from onestep_bench.store.files import file_digest

MODES = {"inception": "clean", "inception-legacy": "legacy_tensorflow"}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise requests.ConnectionError("no network in tests")

    monkeypatch.setattr(requests, "get", refuse)
    monkeypatch.setenv("ONESTEP_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()


@pytest.fixture
def standin(tmp_path, monkeypatch):
    path = write(tmp_path / "weights")
    monkeypatch.setattr(inception, "SHA256", file_digest(path))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of 40 colour pictures, 24x24."""
    random, made = np.random.default_rng(0), []
    for name, blur in (("a", 1.0), ("b", 2.0)):
        folder = tmp_path_factory.mktemp(name)
        for index in range(40):
            pixels = gaussian_filter(random.uniform(0, 255, (24, 24, 3)), (blur, blur, 0))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:02d}.png")
        made.append(folder)
    return made


# ---- Inception, against clean-fid itself


def cleanfid_network(path, mode):
    import_torchvision()
    from cleanfid.inception_torchscript import InceptionV3W

    return InceptionV3W(str(path.parent), download=False, resize_inside=mode == "legacy_tensorflow").eval()


OPTIONS = dict(num_workers=0, device=torch.device("cpu"), verbose=False, batch_size=7)


@pytest.mark.parametrize("name", MODES)
def test_inception_features_of_a_folder_are_those_of_clean_fid(name, standin, folders):
    network = cleanfid_network(standin, MODES[name])
    from cleanfid import fid

    judge = load_extractor(name)
    for folder in folders:
        ours = torch.cat([judge(batch) for batch in images_at(folder).batches()]).numpy()
        theirs = fid.get_folder_features(str(folder), network, mode=MODES[name], **OPTIONS)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow  # clean-fid's matrix root of 2048 dimensions
@pytest.mark.parametrize("name", MODES)
def test_inception_score_of_two_folders_is_that_of_clean_fid(name, standin, folders):
    network = cleanfid_network(standin, MODES[name])
    from cleanfid import fid

    judge = load_extractor(name)
    sources = [images_at(folder) for folder in folders]
    a, b = (judging.judged(judge, source.batches(), len(source)) for source in sources)
    theirs = fid.compute_fid(*map(str, folders), custom_feat_extractor=network, mode=MODES[name], **OPTIONS)
    assert frechet_from_moments(a.mu, a.cov, b.mu, b.cov) == pytest.approx(theirs, rel=1e-5)


def test_inception_logits_are_those_of_its_class_layer_without_bias(standin, folders):
    images = next(images_at(folders[0]).batches())
    _, logits = load_extractor("inception-legacy").judge(images)
    expected = torch.jit.load(str(standin))(images, no_output_bias=True)
    torch.testing.assert_close(logits.softmax(1), expected)


@pytest.mark.parametrize("name", MODES)
def test_inception_features_do_not_depend_on_how_many_are_judged_at_a_time(name, standin, folders):
    images, judge = next(images_at(folders[0]).batches()), load_extractor(name)
    few = judge(images)
    judge.batch = 64
    torch.testing.assert_close(judge(images), few, rtol=1e-5, atol=1e-6)


def test_two_protocols_say_so(standin):
    clean, legacy = (load_extractor(name).protocol for name in MODES)
    assert clean != legacy
    assert clean == f"inception-2015@{inception.SHA256[:12]}; clean-fid clean"


def test_grey_images_are_judged_as_colour(standin):
    grey = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    judge = load_extractor("inception")
    assert torch.equal(judge(grey), judge(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("size", [8, 64, 299, 330])
def test_resizing_is_clean_fids(size):
    import_torchvision()
    from cleanfid.resize import build_resizer

    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    expected = np.stack([build_resizer("clean")(image) for image in images]).transpose(0, 3, 1, 2)
    resized = clean_resize(torch.from_numpy(images).permute(0, 3, 1, 2), 299)
    np.testing.assert_allclose(resized.numpy(), expected, atol=0.01)


# ---- weights


@pytest.mark.parametrize(
    ("name", "module", "file"),
    [
        ("inception", inception, NAME),
        ("inception-legacy", inception, NAME),
        ("clip", clip, "ViT-B-32.pt"),
        ("dinov2", dinov2, "dinov2_vitl14_pretrain.pth"),
    ],
)
def test_missing_and_corrupted_weights_are_one_clear_line(name, module, file, tmp_path, refuses):
    if name == "clip":
        pytest.importorskip("ftfy", reason="the clip extra is not installed")
    place = tmp_path / "weights" / file
    with refuses(f"{file} is missing", f"put the file at {place}", f"SHA256 {module.SHA256}"):
        load_extractor(name)
    place.write_bytes(b"rubbish")
    with refuses(f"checksum mismatch for {place}", module.SHA256):
        load_extractor(name)


def test_a_file_that_is_no_network_is_refused_though_its_checksum_is_right(tmp_path, monkeypatch, refuses):
    place = tmp_path / "weights" / NAME
    place.write_bytes(b"rubbish")
    monkeypatch.setattr(inception, "SHA256", file_digest(place))
    with refuses(f"{place} is no TorchScript network"):
        load_extractor("inception")


# ---- CLIP and DINOv2


def test_clip_is_clean_fids(tmp_path, monkeypatch, folders):
    import_torchvision()
    pytest.importorskip("ftfy", reason="the clip extra is not installed")
    import_clip()
    from clip.model import CLIP

    torch.manual_seed(0)
    small = CLIP(
        embed_dim=32, image_resolution=224, vision_layers=1, vision_width=64, vision_patch_size=32,
        context_length=8, vocab_size=16, transformer_width=64, transformer_heads=1, transformer_layers=1,
    )  # fmt: skip
    place = tmp_path / "weights" / "ViT-B-32.pt"
    torch.save(small.half().state_dict(), place)
    monkeypatch.setattr(clip, "SHA256", file_digest(place))
    from cleanfid import fid
    from cleanfid.clip_features import CLIP_fx, img_preprocess_clip

    theirs = fid.get_folder_features(
        str(folders[0]), CLIP_fx(str(place), "cpu"), num_workers=0, device="cpu", verbose=False,
        custom_fn_resize=img_preprocess_clip,
    )  # fmt: skip
    judge = load_extractor("clip")
    ours = judge(next(images_at(folders[0]).batches()))
    assert judge.dim == ours.shape[1] == 32
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)
    assert judge.logits(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)) is None


HUB = """
import torch
dependencies = ["torch"]
class Small(torch.nn.Module):
    embed_dim = 5
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(5, 3))
    def forward(self, x):
        assert x.shape[1:] == (3, 224, 224)
        return x.mean((2, 3)) @ self.weight.T
def dinov2_vitl14(pretrained=True):
    assert not pretrained
    return Small()
"""


def test_dinov2_is_the_hubs_code_with_our_weights(tmp_path, monkeypatch):
    checkout = tmp_path / "hub" / f"facebookresearch_dinov2_{dinov2.COMMIT}"
    checkout.mkdir(parents=True)
    (checkout / "hubconf.py").write_text(HUB)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    place = tmp_path / "weights" / "dinov2_vitl14_pretrain.pth"
    torch.save({"weight": torch.eye(5, 3)}, place)
    monkeypatch.setattr(dinov2, "SHA256", file_digest(place))
    judge = load_extractor("dinov2")
    white = torch.full((2, 3, 16, 16), 255, dtype=torch.uint8)
    expected = [(1 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    torch.testing.assert_close(judge(white)[1], torch.tensor([*expected, 0, 0]), atol=1e-4, rtol=1e-4)


def test_dinov2_without_its_code_says_where_to_put_it(tmp_path, monkeypatch, refuses):
    place = tmp_path / "weights" / "dinov2_vitl14_pretrain.pth"
    torch.save({}, place)
    monkeypatch.setattr(dinov2, "SHA256", file_digest(place))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))

    def refuse(*_, **__):
        raise OSError("no network in tests")

    monkeypatch.setattr(torch.hub, "load", refuse)
    with refuses(dinov2.COMMIT, str(tmp_path / "hub" / "facebookresearch_dinov2_")):
        load_extractor("dinov2")


# ---- the classifier that the suite trains


@pytest.fixture
def quick(monkeypatch, store_folder):
    monkeypatch.setattr(recipe, "GREY", recipe.Recipe(0, (16, 32, 64), epochs=1, most=80, hflip=False))
    monkeypatch.setattr(recipe, "FEWEST", 80)
    monkeypatch.setattr(recipe, "BATCH", 32)


def test_the_classifier_learns_once_and_says_how_well(quick, monkeypatch):
    digits = load("digits")
    first = references.judge("classifier", digits)
    monkeypatch.setattr(classifier, "train", None)
    second = references.judge("classifier", digits)
    assert second.protocol == first.protocol
    assert f"of digits/train@{digits.digest}" in first.protocol
    accuracy = float(first.protocol.split("%")[0].split()[-1]) / 100
    right = (second.logits(digits.images).argmax(1) == digits.labels).double().mean()
    assert accuracy == pytest.approx(right.item(), abs=0.1)
    assert right > 0.5
    assert second(digits.images[:3]).shape == (3, second.dim)


def test_the_classifier_learns_from_images_to_train_on_whichever_it_judges_against(quick, monkeypatch):
    train = load("digits")
    first = references.judge("classifier", train)
    monkeypatch.setattr(classifier, "train", None)
    for split in ("test", "all"):
        assert references.judge("classifier", train.on(split)).protocol == first.protocol
    made = Dataset("mine", train.images, train.labels, train.digest)  # by hand: it has no other split
    assert f"of mine@{train.digest}" in references.judge("classifier", made).protocol


def test_a_judge_is_told_what_it_asks_for(monkeypatch):
    def plain(device):
        return ()

    def curious(device, channels, split):
        return channels, split

    for make, told in ((plain, ()), (curious, (1, "test"))):
        monkeypatch.setitem(judges._EXTRACTORS, "ours", make)
        assert references.judge("ours", load("digits", split="test")) == told
    assert references.judge("ours", references.Statistics("digits", "stats.npz")) == (3, "all")
    assert load_extractor("ours") == (3, "train")


def test_a_protocol_names_the_split():
    digits, judge = load("digits"), load_extractor("digits")
    for split, count in (("train", 899), ("test", 898), ("all", 1797)):
        against = digits.on(split)
        told = f"5 samples; reference digits/{split}@{against.digest}, {count} images"
        assert references.protocol(judge, 5, against).endswith(told)
    made = Dataset("mine", digits.images, None, "0" * 16)
    assert references.protocol(judge, 5, made).endswith(f"reference mine@{made.digest}, 899 images")


PANELS = {
    ("auto",): ["digits", "pixels"],
    ("digits",): ["digits", "pixels"],
    ("classifier",): ["classifier", "pixels"],
    ("pixels",): ["pixels", "digits"],
    ("auto", "digits"): ["digits", "pixels"],
    ("auto", "random-features", "auto"): ["digits", "random-features"],
    ("inception", "clip", "pixels"): ["inception", "clip", "pixels"],
}


@pytest.mark.parametrize("features", PANELS, ids="+".join)
def test_two_judges_score_always(features):
    assert references.panel(features, load("digits")) == PANELS[features]


def test_the_second_judge_follows_the_data(tmp_path, refuses):
    digits = load("digits")
    labelled, bare = (Dataset("cats", digits.images, labels, "0" * 16) for labels in (digits.labels, None))
    assert references.panel(["auto"], labelled) == ["classifier", "pixels"]
    assert references.panel(["pixels"], bare) == ["pixels", "random-features"]
    # What somebody measured of one judge says nothing of another.
    published = references.Statistics("cats", tmp_path / "stats.npz")
    assert references.panel(["inception"], published) == ["inception"]
    with refuses("no judge is named"):
        references.panel([], digits)


def test_beside_inception_sit_the_judges_whose_weights_are_at_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("ONESTEP_WEIGHTS", str(tmp_path))
    digits = load("digits")
    assert references.panel(["inception"], digits) == ["inception", "pixels"]
    (tmp_path / clip.URL.rsplit("/", 1)[1]).write_bytes(b"weights")
    assert references.panel(["inception"], digits) == ["inception", "clip"]
    assert references.panel(["inception", "pixels"], digits) == ["inception", "pixels"]


def test_the_classifier_is_the_same_whenever_it_is_trained(quick):
    digits = load("digits")
    networks = [classifier.train(digits.images[:300], digits.labels[:300], torch.device("cpu"))[0] for _ in range(2)]
    states = [network.state_dict() for network in networks]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class Killed(Exception):
    pass


def test_a_killed_classifier_goes_on_to_the_same_bits(quick, monkeypatch, tmp_path):
    digits, cut, steps = load("digits"), classifier._cut, []
    undisturbed = references.judge("classifier", digits)
    monkeypatch.setenv("ONESTEP_STORE", str(tmp_path / "other"))
    monkeypatch.setenv("ONESTEP_CHECKPOINT_SECONDS", "0")
    for kill_at in (37, None):

        def watched(images, draw, *how, kill_at=kill_at):
            if draw.step == kill_at:
                raise Killed
            steps.append(draw.step)
            return cut(images, draw, *how)

        monkeypatch.setattr(classifier, "_cut", watched)
        if kill_at:
            with pytest.raises(Killed):
                references.judge("classifier", digits)
    assert references.judge("classifier", digits).digest == undisturbed.digest
    assert steps == [*range(80)]
    assert not list((tmp_path / "other").rglob("checkpoint.pt"))


def coloured(count=240, side=8):
    """Noise, reddish in one class and bluish in the other."""
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 160, (count, 3, side, side), np.uint8), np.arange(count) % 2
    images[labels == 0, 0] += 40
    images[labels == 1, 2] += 40
    return Dataset("mine", torch.from_numpy(images), torch.from_numpy(labels), "0" * 16)


def test_photographs_have_a_recipe_of_their_own_and_go_on_to_the_same_bits(monkeypatch, store_folder, tmp_path):
    monkeypatch.setattr(recipe, "COLOUR", replace(recipe.COLOUR, widths=(8, 8, 8), most=80))
    monkeypatch.setattr(recipe, "BATCH", 24)
    data, cut = coloured(), classifier._cut
    undisturbed = references.judge("classifier", data)
    assert float(undisturbed.protocol.split("%")[0].split()[-1]) > 90
    monkeypatch.setenv("ONESTEP_STORE", str(tmp_path / "other"))
    monkeypatch.setenv("ONESTEP_CHECKPOINT_SECONDS", "0")

    def killed(images, draw, *how):
        if draw.step == 17:
            raise Killed
        return cut(images, draw, *how)

    monkeypatch.setattr(classifier, "_cut", killed)
    with pytest.raises(Killed):
        references.judge("classifier", data)
    monkeypatch.setattr(classifier, "_cut", cut)
    assert references.judge("classifier", data).digest == undisturbed.digest  # the norms' averages among it


def test_a_classifier_of_photographs_sees_patches_without_correlation():
    network, data = classifier.Classifier(3, 2), coloured()
    images = data.images.float() / 127.5 - 1
    images[:, 1] += images[:, 0]
    network.look_at(((images / 2 + 1) * 127.5).round().to(torch.uint8))
    inside = network._whitened(((images / 2 + 1) * 127.5).round() / 127.5 - 1)[..., :-1, :-1]  # edges are repeated
    assert inside.shape[1] == 24
    seen = (inside[:, :12] - inside[:, 12:]).transpose(0, 1).flatten(1)
    assert torch.allclose(torch.cov(seen), torch.eye(12), atol=1e-3)
    assert not any(name.startswith("patches") for name, _ in network.named_parameters())


def test_a_weak_judge_of_photographs_says_so():
    for side, accuracy, weak in ((32, 0.89, True), (64, 0.5, True), (32, 0.9, False), (8, 0.5, False)):
        made = {"trained_on": "mine", "digest": "0" * 16, "shape": (3, side, side), "device": torch.device("cpu")}
        judge = classifier.judge(classifier.Classifier(3, 2), accuracy=accuracy, **made)
        assert ("a weak judge: below 90%" in judge.protocol) == weak


def test_a_classifier_says_what_it_cost(quick, store_folder):
    references.judge("classifier", load("digits"))
    (meta,) = store_folder.rglob(store.META)
    cost = json.loads(meta.read_text())["cost"]
    assert cost["kimg"] == pytest.approx(80 * 32 / 1000)
    assert cost["seconds"] > 0


def test_images_are_shifted_one_by_one_and_never_out_of_sight():
    images = torch.zeros(64, 2, 16, 16)
    images[:, :, 8, 5] = 1
    drawn = [Draw(0, step, batch_size=64, rows=slice(0, 64), progress=0.0) for step in (3, 3, 4)]
    first, again, other = (classifier._cut(images, draw, 8) for draw in drawn)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    places = first.sum(1).nonzero()[:, 1:] - torch.tensor([8, 5])
    assert len(places) == 64
    assert {tuple(place) for place in places.tolist()} <= {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
    assert len(places.unique(dim=0)) > 10
    assert torch.equal(first[:, 0], first[:, 1])


def test_squares_grow_while_a_classifier_of_photographs_learns():
    images = torch.arange(64.0).reshape(1, 1, 8, 8).expand(400, 3, 8, 8)
    sides = recipe.COLOUR.sides
    for progress, side in ((0.0, 6), (0.4, 7), (0.99, 8)):
        cut = classifier._cut(images, Draw(0, 1, batch_size=400, rows=slice(0, 400), progress=progress), 16, sides)
        assert cut.shape == (400, 3, side, side)
        assert torch.equal(cut[..., 1:] - cut[..., :-1], torch.ones(400, 3, side, side - 1))  # what it cuts is whole
        corners = cut[:, 0, 0, 0].unique()
        assert len(corners) == (8 - side + 1) ** 2
        assert {*corners.tolist()} == {8.0 * y + x for y in range(9 - side) for x in range(9 - side)}


def test_a_judge_of_photographs_sees_no_mirror():
    network, images = classifier.Classifier(3, 2).eval(), coloured().images[:8]
    network.look_at(images)
    for one, other in zip(network(images), network(images.flip(-1)), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    network.train()
    assert not torch.allclose(network._seen(images / 255)[0], network._seen(images.flip(-1) / 255)[0])


@pytest.mark.parametrize(
    ("images", "labels", "given"), [(99, [0, 1], "2 and 99"), (120, [0], "1 and 120")], ids=["few", "one class"]
)
def test_too_little_to_learn_from_is_refused(refuses, images, labels, given):
    pictures = torch.zeros(images, 1, 8, 8, dtype=torch.uint8)
    with refuses("a classifier needs 2 classes and 100 images", given):
        classifier.train(pictures, torch.arange(images) % len(labels), torch.device("cpu"))


@pytest.mark.parametrize(
    ("images", "channels", "held"),
    [(60_000, 1, 6000), (1797, 1, 179), (600, 3, 60), (50_000, 3, 2000)],
)
def test_a_tenth_is_held_out_and_of_photographs_no_more_than_two_thousand(images, channels, held):
    assert recipe.held_from(images, channels) == held


def test_what_is_held_out_is_not_trained_on(quick, monkeypatch):
    monkeypatch.setattr(recipe, "GREY", replace(recipe.GREY, held_most=50))
    digits, seen = load("digits"), []
    monkeypatch.setattr(classifier, "_fit", lambda network, source, *more: seen.append(source.images))
    _, held, _ = classifier.train(digits.images, digits.labels, torch.device("cpu"))
    assert len(held.unique()) == 50
    others = [row for row in range(len(digits)) if row not in held]
    assert sorted(image.numpy().tobytes() for image in seen[0]) == sorted(
        digits.images[row].numpy().tobytes() for row in others
    )


def test_a_classifier_is_told_right_of_all_it_never_saw(quick, monkeypatch):
    """Of the tenth held out, and of the test images."""
    digits, counted = load("digits"), classifier.accuracy
    asked, networks = [], []

    def watched(network, *sets):
        asked.extend(sets)
        networks.append(network)
        return counted(network, *sets)

    monkeypatch.setattr(classifier, "accuracy", watched)
    judge = references.judge("classifier", digits)
    (held, _), (test, _) = asked
    assert len(held) == len(digits) // 10
    assert torch.equal(test, digits.on("test").images)
    images, labels = (torch.cat(both) for both in zip(*asked, strict=True))
    right = (networks[0](images)[1].argmax(1) == labels).double().mean().item()
    assert f"{right:.2%} right on held-out images" in judge.protocol


def test_the_budget_follows_the_images():
    assert recipe.steps_for(1797, 1) == recipe.FEWEST == 600
    assert recipe.steps_for(60_000, 1) * recipe.BATCH == pytest.approx(2 * 54_000, abs=recipe.BATCH)
    assert recipe.steps_for(50_000, 3) * recipe.BATCH == pytest.approx(24 * 48_000, abs=recipe.BATCH)
    assert recipe.steps_for(10**7, 3) == 15_000
    assert not recipe.recipe_for(1).hflip  # a mirrored digit is no digit
    assert recipe.recipe_for(3).hflip
    assert (recipe.GREY.version, recipe.COLOUR.version) == (2, 5)  # what trains other weights raises its own


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("ONESTEP_TEST_DATASET") != "mnist", reason="ONESTEP_TEST_DATASET is not mnist")
def test_mnist_is_learned_in_five_minutes_of_a_core():
    mnist, began = load("mnist"), time.process_time()
    network, held, _ = classifier.train(mnist.images, mnist.labels, torch.device("cpu"))
    seconds = time.process_time() - began
    accuracy = classifier.accuracy(network, (mnist.images[held], mnist.labels[held]))
    print(f"{accuracy:.2%} right on held-out images after {seconds:.0f} s of one core")
    assert accuracy >= 0.985
    assert seconds < 300


def test_a_classifier_without_labels_is_refused(quick, refuses, tmp_path):
    with refuses("'classifier' judge learns from labelled images", "cifar10"):
        references.judge("classifier", references.Statistics("cifar10", tmp_path / "stats.npz"))


def test_auto_is_the_judge_that_fits_the_data_without_a_download(quick, refuses, tmp_path, monkeypatch):
    digits = load("digits")
    assert references.judge("auto", digits).protocol == references.judge("digits", digits).protocol
    assert references.judge("auto", references.Statistics("digits", tmp_path / "stats.npz")).name == "digits"
    labelled = Dataset("cats", digits.images[:300], digits.labels[:300] % 2, "0" * 16)
    assert references.judge("auto", labelled).protocol == references.judge("classifier", labelled).protocol
    with refuses("stats.npz", "name it in place of 'auto'"):
        references.judge("auto", references.Statistics("cats", tmp_path / "stats.npz"))

    unlabelled = Dataset("dogs", digits.images[:300], None, "1" * 16)
    monkeypatch.setattr(references, "names", lambda: ["digits", "classifier"])
    with refuses("dogs has no labels", "inception"):
        references.judge("auto", unlabelled)
    monkeypatch.setattr(references, "names", lambda: ["random-features"])
    monkeypatch.setattr(judges, "load_extractor", lambda name, *_, **__: name)
    assert references.judge("auto", unlabelled) == "random-features"


def test_a_folder_of_labelled_images_is_judged_without_naming_a_judge(quick, tmp_path):
    labels = []
    for index, image in enumerate(load("digits").images[:120, 0].numpy()):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
        labels.append([f"{index}.png", index % 2])
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    rows = evaluation.evaluate_images(images_at(tmp_path), load(str(tmp_path)), splits=["train"])["rows"]
    assert [row["features"] for row in rows] == ["classifier", "pixels"]
    assert "classifier" in rows[0]["protocol"]


def test_unknown_judges_hint_at_known_ones(refuses):
    with refuses("'clasifier'", "did you mean 'classifier'?"):
        references.judge("clasifier", load("digits"))
