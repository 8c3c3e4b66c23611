"""ADVENT: its equations against NumPy, which network each term trains, and its place in the benchmark alone."""

import ast
import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

import das3
import worlds
from das3.benchmark import cell as cell_module
from das3.benchmark import grid as grid_module
from das3.benchmark.advent import (
    Advent,
    AdventOptions,
    AdventRecipe,
    Discriminator,
    advent_recipe,
    self_information,
    train_advent,
)
from das3.benchmark.tables import results_table
from das3.data.open import open_labelled
from das3.errors import RecipeError
from das3.models import load_segmenter
from das3.norms import batch_norms, set_norm_mode
from das3.recipe import Recipe
from das3.registry import stage_types
from das3.segmenter import Segmenter
from das3.stages.context import StageContext
from das3.training import phases
from das3.training.loop import make_fabric
from das3.training.supervised import SupervisedLabels
from reference import close, cross_entropy, entropy, pixels, softmax
from small_benchmark import run_grid, weights

ROOT = Path(das3.__file__).parent


def test_self_information(logits, valid):
    maps = self_information(logits)
    p = softmax(pixels(logits))
    assert pixels(maps) == close(-p * np.log(p) / np.log(len(p)))
    assert pixels(maps).sum(axis=0) == close(entropy(p))
    assert self_information(logits.bfloat16()).dtype == torch.float32
    kept = valid.unsqueeze(1).expand_as(maps)
    masked = self_information(logits.masked_fill(~kept, float("nan")), valid)
    assert torch.equal(masked[kept], maps[kept])
    assert not masked[~kept].any()


def test_the_discriminator_sees_patches_of_maps_of_any_size():
    discriminator = Discriminator(3, width=4)
    assert [layer.out_channels for layer in discriminator.layers if isinstance(layer, nn.Conv2d)] == [4, 8, 16, 32, 1]
    assert discriminator(torch.rand(2, 3, 64, 100)).shape == (2, 1, 2, 3)
    assert discriminator(torch.rand(2, 3, 5, 40)).shape == (2, 1, 1, 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Labelled images of the source, and images of the target."""
    root = tmp_path_factory.mktemp("world")
    found = []
    for domain in ("source", "target"):
        folder = worlds.write_world(root / domain, domain, count=4, size=(32, 48))
        found.append(open_labelled(folder / "images", folder / "labels"))
    return found[0], found[1].images


def network(pointwise=False):
    torch.manual_seed(0)
    if pointwise:
        layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))
        with torch.no_grad():
            layers[2].weight *= 10  # some pixels are sure
        return Segmenter(layers, example_size=(16, 16))
    return load_segmenter("das3:small", num_classes=3, model_args={"width": 8})


def prepared(world, folder, segmenter, crop=(32, 48)):
    """The stage after `prepare`, and a batch of its samples."""
    source, target = world
    stage = Advent(AdventOptions(scale=(0.75, 1.5)), source.images, SupervisedLabels(source, source.images.sizes()))
    samples = stage.prepare(StageContext(make_fabric("cpu", "32"), segmenter, target, folder, (0, 0), crop, 4))
    return stage, default_collate([samples[n] for n in range(4)])


class Pixelwise(nn.Module):
    """A discriminator of one layer, D = w · I + b."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)

    def forward(self, maps):
        return self.layer(maps)

    def target_probability(self, p):
        """C×N probabilities to N probabilities of being the target's."""
        information = -p * np.log(p) / np.log(len(p))
        w, b = self.layer.weight.detach().double().numpy().reshape(1, -1), self.layer.bias.item()
        return 1 / (1 + np.exp(-(w @ information + b)[0]))


def test_losses_are_the_papers(world, tmp_path):
    segmenter = network().eval()
    stage, batch = prepared(world, tmp_path, segmenter)
    batch["source_valid"], batch["valid"] = (torch.ones_like(batch[key]) for key in ("source_valid", "valid"))
    stage.discriminator = Pixelwise()
    found = {name: value.item() for name, value in stage.loss(segmenter, batch).items()}
    source, target = (softmax(pixels(segmenter(batch[key]))) for key in ("source_image", "image"))
    on_source, on_target = [stage.discriminator.target_probability(p) for p in (source, target)]
    assert found == {
        "cross_entropy": close(cross_entropy(source, batch["source_labels"].flatten().tolist())),
        "adversarial": close(0.001 * np.mean(-np.log(1 - on_target))),  # the target's maps, labelled as the source's
        "discriminator": close((np.mean(-np.log(1 - on_source)) + np.mean(-np.log(on_target))) / 2),
    }


def test_each_network_learns_from_its_own_terms(world, tmp_path):
    segmenter = network().train()
    stage, batch = prepared(world, tmp_path, segmenter)
    learned = {}
    for name in ("cross_entropy", "adversarial", "discriminator"):
        stage.loss(segmenter, batch)[name].backward()
        learned[name] = tuple(any(p.grad is not None for p in net.parameters()) for net in (segmenter, stage))
        for net in (segmenter, stage):
            net.zero_grad(set_to_none=True)
    assert learned == {"cross_entropy": (True, False), "adversarial": (True, False), "discriminator": (False, True)}


def test_the_discriminator_learns_to_separate_domains_and_the_segmenter_to_fool_it(world, tmp_path):
    segmenter = network(pointwise=True)
    stage, batch = prepared(world, tmp_path, segmenter)

    @torch.no_grad()
    def mean_logit(key):
        return stage.discriminator(self_information(segmenter(batch[key]))).mean().item()

    apart = mean_logit("image") - mean_logit("source_image")
    optimizer = torch.optim.Adam(stage.parameters(), 1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        stage.loss(segmenter, batch)["discriminator"].backward()
        optimizer.step()
    assert mean_logit("image") - mean_logit("source_image") > apart + 0.01
    before = mean_logit("image")
    stage.loss(segmenter, batch)["adversarial"].backward()
    with torch.no_grad():
        for parameter in segmenter.parameters():
            parameter -= 1e-3 * parameter.grad.sign()
    assert mean_logit("image") < before


def test_running_statistics_are_the_targets(world, tmp_path):
    segmenter = network().train()
    set_norm_mode(segmenter, "batch")
    stage, batch = prepared(world, tmp_path, segmenter)
    alone = copy.deepcopy(segmenter)
    alone(batch["image"])
    stage.loss(segmenter, batch)
    for mine, theirs in zip(batch_norms(segmenter), batch_norms(alone), strict=True):
        assert torch.equal(mine.running_mean, theirs.running_mean)
        assert torch.equal(mine.running_var, theirs.running_var)


def test_samples_are_pairs_and_the_source_has_its_own_labels(world, tmp_path):
    _, batch = prepared(world, tmp_path, network())
    colors = torch.tensor(worlds.COLORS["source"]).float() / 255
    far = (batch["source_image"].unsqueeze(1) - colors[None, :, :, None, None]).norm(dim=2)
    known = batch["source_labels"] < 3
    same = far.argmin(dim=1) == batch["source_labels"]
    assert known.float().mean() > 0.5
    assert same[known].float().mean() > 0.9
    assert set(batch) == {"image", "valid", "source_image", "source_valid", "source_labels"}
    assert not torch.equal(batch["valid"], batch["source_valid"])  # cut by draws of their own


def test_pixels_of_the_padding_change_no_loss(world, tmp_path):
    segmenter = network(pointwise=True)
    stage, batch = prepared(world, tmp_path, segmenter, crop=(64, 64))
    assert not batch["valid"].all()
    assert not batch["source_valid"].all()
    found = []
    for value in (0.0, 0.9):
        filled = {
            **batch,
            "image": batch["image"].masked_fill(~batch["valid"].unsqueeze(1), value),
            "source_image": batch["source_image"].masked_fill(~batch["source_valid"].unsqueeze(1), value),
        }
        found.append({name: loss.item() for name, loss in stage.loss(segmenter, filled).items()})
    assert found[0] == close(found[1])


def logged_steps(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_was_killed_ends_bit_equal(world, tmp_path, monkeypatch):
    source, target = world
    loop = {"device": "cpu", "batch_size": 2, "checkpoint_every": 2, "log_every": 1, "ema_decay": 0.5}

    def run(folder, **more):
        recipe = AdventRecipe(steps=5, out=str(tmp_path / folder), **loop)
        return train_advent(network(), target, source, recipe, quiet=True, **more).model.state_dict()

    whole = run("whole")
    with monkeypatch.context() as patch:
        save = phases.save_checkpoint

        def then_die(path, state):
            save(path, state)
            raise KeyboardInterrupt

        patch.setattr("das3.training.phases.save_checkpoint", then_die)
        with pytest.raises(KeyboardInterrupt):
            run("killed")
    # The thread that saves step 2 fails while the loop goes on: the next report tells, at the latest the next save.
    assert logged_steps(tmp_path / "killed") in ([1, 2], [1, 2, 3], [1, 2, 3, 4])
    resumed = run("killed", resume=True)
    assert logged_steps(tmp_path / "killed") == logged_steps(tmp_path / "whole") == [1, 2, 3, 4, 5]
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert any(not torch.equal(whole[key], value) for key, value in network().model.state_dict().items())


def test_its_recipe_has_the_loop_options_of_every_method():
    recipe = advent_recipe({"batch_size": 3, "align": {"gamma": 1.0}}, 11)
    assert (recipe.steps, recipe.batch_size, recipe.ema_decay) == (11, 3, Recipe().ema_decay)
    assert (recipe.lr, recipe.adversarial_weight) == (1e-4, 1e-3)
    assert advent_recipe({}).steps == sum(Recipe().options_of(stage).steps for stage in Recipe().stages)
    with pytest.raises(RecipeError, match="gama"):
        advent_recipe({"gama": 1})
    with pytest.raises(RecipeError, match="adversarial_weight"):
        dataclasses.replace(recipe, adversarial_weight=-1.0)


def test_a_cell_of_the_benchmark(grid, tmp_path, in_this_process, monkeypatch):
    suite, finished, rows = grid
    out = shutil.copytree(finished, tmp_path / "out")
    found = run_grid(suite, out, ["advent", "bn"], measure_every=2)
    assert [row["method"] for row in found] == ["source", "oracle", "bn", "advent"]
    mine, (low, high) = found[-1], (row["miou"] for row in rows[:2])
    assert mine.keys() == rows[3].keys()
    assert mine["stage"] == "advent"
    assert mine["gap_closed"] == pytest.approx((mine["miou"] - low) / (high - low), abs=1e-4)
    assert [step for step, _ in mine["curve"]] == [2, 4, 6, 8, 10, 11]
    last = json.loads((out / "0/advent/metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], set(last["losses"])) == (11, {"cross_entropy", "adversarial", "discriminator"})
    start, end = (weights(out / "0" / kind) for kind in ("source", "advent"))
    assert any(not torch.equal(start[key], end[key]) for key in start)
    lines = results_table(found).markdown().splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["source", "bn", "advent (sees source data)", "oracle"]
    assert "**" not in lines[4]
    monkeypatch.setattr(cell_module, "train_advent", lambda *args, **options: 1 / 0)
    assert run_grid(suite, out, ["advent", "bn"], measure_every=2) == found


def test_without_source_data_it_is_refused(grid, tmp_path, monkeypatch):
    suite, out, _ = grid
    asked = []
    monkeypatch.setattr(grid_module, "plan", lambda suite, opened, methods, *more: asked.append(list(methods)) or [])
    model = str(out / "0/source/model")
    run_grid(suite, tmp_path, ["all"])
    run_grid(suite, tmp_path, ["all"], source_model=model)
    assert asked[0] == [*asked[1], "advent"]
    with pytest.raises(RecipeError, match="advent trains on source data, of which suite tiny has none"):
        run_grid(suite, tmp_path, ["bn", "advent"], source_model=model)
    assert len(asked) == 2


def test_no_adaptation_code_imports_it():
    assert "advent" not in stage_types()
    with pytest.raises(RecipeError, match="no stage is called 'advent'"):
        Recipe(stages=("advent",))
    users = {
        path.name
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "das3.benchmark.advent"
    }
    assert users == {"grid.py", "cell.py"}
