"""The rivals' equations against float64 NumPy, one pixel at a time, and what is particular to each method."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

import reference
from das3.bench import Bench
from das3.data.images import open_images
from das3.data.samples import Samples, View
from das3.engine import make_fabric
from das3.errors import ModelError
from das3.norms import batch_norms
from das3.recipe import Recipe, add_recipe_options, recipe_from, recipe_of
from das3.rivals.cbst import confidence_regularizer
from das3.rivals.fakes import Generator, PatchJudge, reverse
from das3.rivals.features import features_and_logits, to_grid
from das3.rivals.hcl import category_loss, historical_consistency, instance_loss
from das3.rivals.ld import complementary_labels
from das3.rivals.maxsquare import max_square_loss
from das3.rivals.mean_teacher import mix_batch, sure_labels
from das3.rivals.sfda import attention_kl, attentions, dual_attention, easy_and_hard, statistics_loss
from das3.rivals.shot import NearestCentroid, information_losses
from das3.rivals.teachers import follow, frozen_copy
from das3.rivals.thresholds import confidence_histogram, label_above, normalized_labels, thresholds_of
from das3.rivals.urma import Decoders, uncertainty_loss
from das3.rivals.views import TwoViews
from das3.segmenter import Segmenter
from das3.stages import find_stage, stage_types
from das3.stages.base import parameter_groups

B, C, H, W = 3, 5, 4, 6


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def logits(rng):
    return torch.from_numpy(rng.normal(0, 3, (B, C, H, W))).float()


@pytest.fixture
def valid(rng):
    return torch.from_numpy(rng.random((B, H, W)) < 0.7)


def pixels(tensor, keep=None):
    """B×K×H×W to K×N float64, those that count."""
    flat = tensor.detach().double().numpy().transpose(1, 0, 2, 3).reshape(tensor.shape[1], -1)
    return flat if keep is None else flat[:, keep.numpy().flatten()]


def close(value):
    return pytest.approx(value, rel=1e-5, abs=1e-7)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def network(*layers):
    return Segmenter(nn.Sequential(*layers), example_size=(8, 8))


def pointwise():
    return network(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))


def bench(segmenter, folder, count=3, size=(10, 12)):
    images = [np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8) for i in range(count)]
    return Bench(make_fabric("cpu", "32"), segmenter, open_images(images), folder, (0, 0), (8, 8), 2)


# Losses


def test_maximum_squares(logits, valid):
    plain = weighted = 0.0
    for b in range(B):
        p = pixels(logits[b : b + 1].softmax(1), valid[b])
        prediction, n = p.argmax(axis=0), p.shape[1]
        for i in range(n):
            squares = sum(p[c, i] ** 2 for c in range(C))
            plain -= squares / (2 * n * B)
            weighted -= squares / (2 * B * (prediction == prediction[i]).sum() ** 0.2 * n**0.8)
    assert max_square_loss(logits, valid, ratio=0.0).item() == close(plain)
    assert max_square_loss(logits, valid, ratio=0.2).item() == close(weighted)
    assert max_square_loss(logits, torch.zeros_like(valid), ratio=0.2).item() == 0


def test_information_maximisation(logits, valid):
    p = pixels(logits.softmax(1), valid)
    entropy, diversity = information_losses(logits, valid)
    assert entropy.item() == close(reference.entropy(p).mean() * np.log(C))
    mean = p.mean(axis=1)
    assert diversity.item() == close(sum(m * np.log(m) for m in mean))


@pytest.mark.parametrize("kind", ["kld", "ent"])
def test_confidence_regularizers(logits, valid, kind):
    p = pixels(logits.softmax(1), valid)
    expected = -np.log(p).mean(axis=0) if kind == "kld" else -reference.entropy(p) * np.log(C)
    assert confidence_regularizer(logits, valid, kind).item() == close(expected.mean())
    # Both are least where all classes are equally likely.
    flat = confidence_regularizer(torch.zeros_like(logits), valid, kind)
    assert flat < confidence_regularizer(logits, valid, kind)


def test_uncertainty(logits, valid, rng):
    others = [torch.from_numpy(rng.normal(0, 3, (B, C, H, W))).float().requires_grad_() for _ in range(2)]
    main = logits.requires_grad_()
    p = pixels(main.softmax(1), valid)
    expected = sum(((pixels(z.softmax(1), valid) - p) ** 2).mean() for z in others)
    loss = uncertainty_loss(main, others, valid)
    assert loss.item() == close(expected)
    loss.backward()
    assert main.grad is None
    assert others[0].grad.abs().sum() > 0


@pytest.mark.parametrize("rank", [2, 3, C])
def test_complementary_labels_name_the_class_of_that_rank(logits, rank):
    chosen = pixels(complementary_labels(logits, rank))
    for z, n in zip(pixels(logits).T, chosen.T, strict=True):
        assert n.sum() == 1
        assert sorted(z, reverse=True)[rank - 1] == z[n.argmax()]


def test_instance_discrimination(rng):
    queries, keys = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4, 3))
    trust, inside = rng.uniform(0.5, 1, (2, 4)), np.array([[True, True, False, True], [True, True, True, True]])
    losses = []
    for b in range(2):
        places = [s for s in range(4) if inside[b, s]]
        for s in places:
            cosine = [
                queries[b, s] @ keys[b, t] / np.linalg.norm(queries[b, s]) / np.linalg.norm(keys[b, t])
                for t in range(4)
            ]
            score = [trust[b, t] * np.exp(cosine[t] / 0.07) for t in range(4)]
            losses.append(-np.log(score[s] / sum(score[t] for t in places)))
    found = instance_loss(*map(torch.from_numpy, (queries, keys, trust, inside)), temperature=0.07)
    assert found.item() == close(np.mean(losses))
    nowhere = torch.zeros(2, 4, dtype=torch.bool)
    assert instance_loss(*map(torch.from_numpy, (queries, keys, trust)), nowhere, 0.07).item() == 0


def test_category_discrimination(logits, valid, rng):
    old = torch.from_numpy(rng.normal(0, 3, (B, C, H, W))).float()
    labels = torch.from_numpy(rng.integers(0, C, (B, H, W))).masked_fill(~valid, 255)
    p, q, y = pixels(logits.softmax(1)), pixels(old.softmax(1)), labels.numpy().flatten()
    trust = [1 - 1 / (1 + np.exp(-sum(abs(p[c, i] - q[c, i]) for c in range(C)))) for i in range(len(y))]
    found = historical_consistency(logits.softmax(1), old.softmax(1))
    np.testing.assert_allclose(found.flatten(), trust, rtol=1e-5)
    expected = np.mean([-trust[i] * np.log(p[y[i], i]) for i in range(len(y)) if y[i] != 255])
    assert category_loss(logits, labels, found).item() == close(expected)


def test_atp_losses(tmp_path, valid, rng):
    segmenter = pointwise().eval()
    image = torch.from_numpy(rng.random((B, 3, H, W))).float()
    with torch.no_grad():
        segmenter.model[3].weight *= 10
    p = pixels(segmenter(image).softmax(1), valid)
    align = find_stage("atp-align")(find_stage("atp-align").Options())
    align.prepare(bench(segmenter, tmp_path))
    losses = align.loss(segmenter, {"image": image, "valid": valid})
    assert losses["focal_entropy"].item() == close(reference.focal_entropy(p, 1e-3, 5))
    assert losses["diversity"].item() == close(1e-4 * reference.diversity(reference.mean_prediction(p, 3)))
    kind = find_stage("atp-selftrain")
    labels = torch.full((B, H, W), 255)
    found = kind(kind.Options()).loss(segmenter, {"image": image, "valid": valid, "labels": labels})
    assert found["negative"].item() == close(reference.negative(p, p < 0.04, "pooled"))
    assert found["negative"] > 0


# Labels


def test_thresholds_over_the_data_set(rng):
    images = [torch.from_numpy(rng.normal(0, 6, (C, H, W))).softmax(0) for _ in range(20)]
    images = [torch.cat([p[:-1] + p[-1], torch.zeros_like(p[-1:])]) for p in images]  # the last class wins nowhere
    images = [p / p.sum(0) for p in images]
    histogram = sum(confidence_histogram(p) for p in images)
    confidence = torch.stack([p.max(0).values for p in images]).numpy().flatten()
    prediction = torch.stack([p.argmax(0) for p in images]).numpy().flatten()
    for share in (0.2, 0.5, 1.0):
        exact = reference.thresholds(confidence, prediction, share, C)
        found = thresholds_of(histogram, share).numpy()
        assert found[-1] == 1
        # To within half a percent of the distance to 1.
        np.testing.assert_allclose(1 - found[:-1], 1 - exact[:-1], rtol=5e-3, atol=1e-6)
        for c in range(C - 1):
            kept = confidence[prediction == c] >= found[c]
            assert share <= kept.mean() + 1e-9
            assert kept.mean() <= share + 0.05


def test_class_normalised_labels(logits):
    probs = (logits[0] / 3).softmax(0)
    thresholds = torch.tensor([0.9, 0.5, 0.2, 0.99, 0.7])
    p = pixels(probs[None])
    normalized, plain = [], []
    for i in range(p.shape[1]):
        ratios = [p[c, i] / float(thresholds[c]) for c in range(C)]
        normalized.append(int(np.argmax(ratios)) if max(ratios) >= 1 else 255)
        best = int(p[:, i].argmax())
        plain.append(best if p[best, i] >= float(thresholds[best]) else 255)
    assert normalized_labels(probs, thresholds).flatten().tolist() == normalized
    assert label_above(probs, thresholds).flatten().tolist() == plain
    assert normalized != plain


def test_shot_labels_by_the_nearest_centroid(tmp_path):
    """The authors' procedure with all features in memory."""
    segmenter = pointwise().eval()
    with torch.no_grad():
        segmenter.model[3].weight *= 20
    work = bench(segmenter, tmp_path)
    stage = find_stage("shot")(find_stage("shot").Options())
    stage.prepare(work)
    assert not segmenter.training
    features, logits = zip(*(features_and_logits(segmenter, b) for b in work.batches()), strict=True)
    f = np.concatenate([pixels(x) for x in features], axis=1).T
    f = np.concatenate([f, np.ones((len(f), 1))], axis=1)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    weight = np.concatenate([pixels(z.softmax(1)) for z in logits], axis=1).T
    prediction = weight.argmax(axis=1)
    for _ in range(2):
        centroids = weight.T @ f / np.maximum(weight.sum(axis=0), 1e-8)[:, None]
        cosine = f @ centroids.T / np.maximum(np.linalg.norm(centroids, axis=1), 1e-8)
        cosine[:, np.bincount(prediction, minlength=3) == 0] = -1
        prediction = cosine.argmax(axis=1)
        weight = np.eye(3)[prediction]
    found = np.concatenate([stage.pseudo_labels[i]["labels"].flatten() for i in range(3)])
    assert (found == prediction).mean() > 0.999
    assert len(set(prediction)) > 1


def test_shot_needs_a_feature_map(tmp_path):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(self.first(x.flatten(2).transpose(1, 2))).transpose(1, 2).unflatten(2, x.shape[2:])

    segmenter = Segmenter(Tokens(), example_size=(8, 8))
    with pytest.raises(ModelError, match="last"):
        NearestCentroid(segmenter).fit(bench(segmenter, tmp_path), hard=False)


def test_sure_labels(logits, valid):
    labels, sure = sure_labels(logits.softmax(1), valid, 0.6)
    p, keep = pixels(logits.softmax(1)), valid.numpy().flatten()
    assert labels.flatten().tolist() == [int(c) if k else 255 for c, k in zip(p.argmax(0), keep, strict=True)]
    assert sure.item() == close((p.max(0)[keep] >= 0.6).mean())


def test_mixtures_hold_half_of_the_classes_of_one_image_over_the_next(rng):
    labels = torch.from_numpy(rng.integers(0, 4, (B, 8, 8)))
    images = torch.arange(B).view(B, 1, 1, 1).expand(B, 3, 8, 8).float()
    mixed, mixed_labels = mix_batch(images, labels, rng)
    for b in range(B):
        after = (b + 1) % B
        pasted = mixed[b, 0] == b
        assert (mixed[b, 0][~pasted] == after).all()
        assert torch.equal(mixed_labels[b], torch.where(pasted, labels[b], labels[after]))
        classes = set(labels[b][pasted].tolist())
        assert len(classes) == 2
        assert not classes & set(labels[b][~pasted].tolist())


# Networks, teachers and views


def test_features_enter_the_classifier_and_maps_are_brought_to_their_grid():
    layers = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)
    segmenter = Segmenter(nn.Sequential(*layers), example_size=(16, 16), divisor=8, square=False)
    images = torch.rand(2, 3, 12, 20)
    features, logits = features_and_logits(segmenter, images)
    assert features.shape == (2, 4, 8, 12)
    torch.testing.assert_close(segmenter.upsample(layers[2](features), images), logits)
    grid = to_grid(segmenter, images, features)
    assert grid.shape == (2, 3, 8, 12)
    torch.testing.assert_close(grid[..., :6, :10], nn.functional.avg_pool2d(images, 2))


def test_a_teacher_follows_and_is_never_trained():
    student = pointwise()
    teacher = frozen_copy(student)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    before = teacher.model[0].weight.clone()
    with torch.no_grad():
        student.model[0].weight += 1
        student.model[1].running_mean += 2
    follow(teacher, student, keep=0.75)
    torch.testing.assert_close(teacher.model[0].weight, before + 0.25)
    assert torch.equal(teacher.model[1].running_mean, student.model[1].running_mean)


def test_two_views_are_cut_alike():
    images = [np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8) for i in range(3)]
    view = View((16, 16), scale=(0.5, 2.0), color=0.5, blur=1.0)
    strong = Samples(images, view, seed=(1,))
    weak = Samples(images, dataclasses.replace(view, color=0.0, blur=0.0), seed=(1,))
    for n in range(5):
        sample = TwoViews(strong)[n]
        assert torch.equal(sample["image"], strong[n]["image"])
        assert torch.equal(sample["clean"], weak[n]["image"])
        assert not torch.equal(sample["image"], sample["clean"])


def test_tent_trains_norm_layers_alone():
    stage = find_stage("tent")(find_stage("tent").Options())

    def names(segmenter):
        chosen = {id(p) for p in stage.trainable(segmenter)}
        return [n for n, p in segmenter.model.named_parameters() if id(p) in chosen]

    assert names(pointwise()) == ["1.weight", "1.bias"]
    assert names(network(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 1))) == ["1.weight", "1.bias"]
    both = network(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
    assert names(both) == ["2.weight", "2.bias"]
    with pytest.raises(ModelError, match="norm"):
        stage.trainable(network(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)))


def test_blended_statistics_lie_half_way(tmp_path):
    original, means = pointwise(), []
    before = original.model[1].running_mean.clone()
    for name in ("bn", "bn-blend"):
        segmenter = copy.deepcopy(original)
        find_stage(name)(find_stage(name).Options()).prepare(bench(segmenter, tmp_path))
        means.append(segmenter.model[1].running_mean)
    torch.testing.assert_close(means[1], (before + means[0]) / 2)


def test_auxiliary_decoders_are_drawn_anew_and_trained_at_ten_times_the_rate(tmp_path):
    segmenter = pointwise()
    stage = find_stage("urma")(find_stage("urma").Options(lr=1e-3))
    stage.prepare(bench(segmenter, tmp_path))
    weights = [segmenter.model[3].weight, *(d.weight for d in stage.decoders.copies)]
    assert len(weights) == 5
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])
    rates = {id(p): g["lr"] for g in parameter_groups(segmenter, stage, 0.01) for p in g["params"]}
    assert rates[id(weights[0])] == close(1e-3)
    assert all(rates[id(w)] == close(1e-2) for w in weights[1:])
    again = Decoders(segmenter, 4, 0.5, seed=0)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(again.copies, stage.decoders.copies, strict=True))


def test_urma_needs_one_classifier():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x):
            x = self.first(x).relu()
            return self.a(x) + self.b(x)

    with pytest.raises(ModelError, match="a, b"):
        Decoders(Segmenter(Two(), example_size=(8, 8)), 4, 0.5, seed=0)


def test_a_teachers_parameters_are_not_in_the_optimizer(tmp_path):
    segmenter = pointwise()
    stage = find_stage("mean-teacher")(find_stage("mean-teacher").Options())
    stage.prepare(bench(segmenter, tmp_path))
    chosen = [p for group in parameter_groups(segmenter, stage, 0.01) for p in group["params"]]
    assert {id(p) for p in chosen} == {id(p) for p in segmenter.parameters()}


# SFDA


def test_statistics_loss():
    segmenter = pointwise()
    norm = next(batch_norms(segmenter))
    with torch.no_grad():
        norm.running_mean += 0.5
        norm.running_var += 0.25
    x = torch.randn(3, 4, 5, 6)
    flat = pixels(x)
    expected = ((flat.mean(1) - 0.5) ** 2).sum() + ((flat.var(1) - 1.25) ** 2).sum()
    assert statistics_loss([x], [norm]).item() == close(expected)


def test_dual_attention(rng):
    x, y = (torch.from_numpy(rng.normal(size=(2, 3, 2, 2))) for _ in range(2))
    kl = 0.0
    for b in range(2):
        f, g = (t[b].numpy().reshape(3, 4) for t in (x, y))
        # Columns of S and rows of R are distributions.
        spatial, channel = ([reference.softmax(v.T @ v), reference.softmax((v @ v.T).T).T] for v in (f, g))
        np.testing.assert_allclose(attentions(x)[0][b], spatial[0], rtol=1e-6)
        np.testing.assert_allclose(attentions(x)[1][b], spatial[1], rtol=1e-6)
        both = np.concatenate([f @ spatial[0], spatial[1] @ f])
        np.testing.assert_allclose(dual_attention(x)[b], both, rtol=1e-6)
        for p, q, n in zip(spatial, channel, (4, 3), strict=True):
            kl += (p * np.log(p / q)).sum() / n / 2
    assert attention_kl(x, y).item() == close(kl)
    assert attention_kl(x, x).item() == close(0)


def test_patches_are_ranked_place_by_place(rng):
    probs = torch.from_numpy(rng.normal(0, 3, (5, 3, 7, 9))).softmax(1)
    easy, hard, places = easy_and_hard(probs, 2)
    assert easy.shape == hard.shape == (8, 3, 3, 4)
    assert sorted(places.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    for place in range(4):
        top, left = place // 2 * 3, place % 2 * 4
        patches = probs[:, :, top : top + 3, left : left + 4]
        doubt = [reference.entropy(pixels(p[None])).mean() for p in patches]
        order = np.argsort(doubt)
        assert torch.equal(easy[places == place], patches[order[:2].tolist()])
        assert torch.equal(hard[places == place], patches[order[-2:].tolist()])
    assert len(easy_and_hard(probs[:1], 2)[0]) == 0


def test_reversed_gradients():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = reverse(x, 0.5)
    assert torch.equal(x, y)
    (3 * y).sum().backward()
    assert x.grad.tolist() == [-1.5, -1.5]


@pytest.mark.parametrize("size", [(16, 24), (13, 21)])
def test_generator_and_judge(size):
    images = Generator(size)(torch.randn(2, 256))
    assert images.shape == (2, 3, *size)
    assert images.min() >= 0
    assert images.max() <= 1
    assert PatchJudge(4, 9)(torch.rand(3, 4, 5, 7), torch.tensor([0, 8, 4])).shape == (3,)


def test_the_generator_seeks_images_on_which_the_models_differ_and_the_segmenter_follows(tmp_path):
    """One step against each gradient alone: the difference grows for the generator and shrinks for the segmenter."""
    segmenter = pointwise()
    stage = find_stage("sfda")(find_stage("sfda").Options())
    stage.prepare(bench(segmenter, tmp_path, size=(32, 32)))
    with torch.no_grad():
        segmenter.model[3].weight += torch.randn_like(segmenter.model[3].weight)
    segmenter.eval()

    def difference():
        torch.manual_seed(1)
        return stage._transfer(segmenter, torch.randn(2, 4, 16, 16))["output"]

    before = difference()
    before.backward()
    for module, grows in ((stage.generator, True), (segmenter, False)):
        kept = {k: v.clone() for k, v in module.state_dict().items()}
        with torch.no_grad():
            for p in module.parameters():
                p -= 1e-3 * p.grad if p.grad is not None else 0
        assert (difference() > before) == grows
        module.load_state_dict(kept)


def test_made_up_images_move_no_running_statistics(tmp_path):
    segmenter = pointwise()
    source = copy.deepcopy(segmenter.model[1].running_mean)
    stage = find_stage("sfda")(find_stage("sfda").Options())
    stage.prepare(bench(segmenter, tmp_path, size=(32, 32)))
    assert torch.equal(stage.source.model[1].running_mean, source)
    assert not torch.equal(segmenter.model[1].running_mean, source)
    image = torch.rand(2, 3, 8, 8)
    alone = copy.deepcopy(segmenter).train()
    alone(image)
    stage.loss(segmenter.train(), {"image": image, "valid": torch.ones(2, 8, 8, dtype=torch.bool)})
    torch.testing.assert_close(segmenter.model[1].running_mean, alone.model[1].running_mean)
    assert segmenter.model[1].momentum == alone.model[1].momentum


def test_sfda_needs_batch_norm(tmp_path):
    segmenter = network(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    with pytest.raises(ModelError, match="batch-norm"):
        find_stage("sfda")(find_stage("sfda").Options()).prepare(bench(segmenter, tmp_path))


# Recipes


def test_every_method_can_be_named_and_set_in_a_recipe():
    steps = {name: 7 if kind.Options().steps else 0 for name, kind in stage_types().items()}
    values = {name.replace("-", "_"): {"steps": n} for name, n in steps.items()}
    recipe = recipe_from({"stages": list(steps), **values})
    assert {name: recipe.options_of(name).steps for name in steps} == steps
    assert recipe_from(recipe.to_dict()) == recipe


def test_options_of_a_method_with_a_hyphen_on_the_command_line():
    parser = ArgumentParser(exit_on_error=False)
    add_recipe_options(parser)
    recipe = recipe_of(parser.parse_args(["--stages=[shot-im]", "--shot-im.steps=9", "--shot-im.head-lr-factor=2"]))
    assert isinstance(recipe, Recipe)
    assert (recipe.options_of("shot-im").steps, recipe.options_of("shot-im").head_lr_factor) == (9, 2)
