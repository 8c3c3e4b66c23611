"""Blocks that are run again in the backward pass: the same gradients, statistics and random numbers."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from das3.errors import ModelError, RecipeError
from das3.models import load_segmenter
from das3.norms import training_norms
from das3.recipe import Recipe
from das3.registry import find_stage
from das3.testing import LOOP, run_small
from das3.training.recompute import blocks_of, recomputed_blocks


def hf_segformer():
    import transformers

    small = {"depths": [2, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 1, 2, 2]}
    config = transformers.SegformerConfig(num_labels=3, decoder_hidden_size=16, drop_path_rate=0.3, **small)
    return transformers.SegformerForSemanticSegmentation(config)


def smp_unet():
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", encoder_weights=None, decoder_channels=(16, 8, 8, 4, 4), classes=3)


def torchvision_lraspp():
    import torchvision

    return torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)


def small():
    return load_segmenter("das3:small", num_classes=3, model_args={"width": 4}).model


NETWORKS = {one.__name__: one for one in (hf_segformer, smp_unet, torchvision_lraspp, small)}


def step(model, images):
    """Gradients and statistics of a step of a network with dropout."""
    model.zero_grad()
    torch.manual_seed(3)
    output = model(images)
    logits = output if isinstance(output, torch.Tensor) else output["logits" if "logits" in output else "out"]
    logits.square().mean().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {name: buffer.clone() for name, buffer in model.named_buffers()}, torch.rand(1)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_a_step_is_the_same_and_each_block_runs_twice(make):
    torch.manual_seed(0)
    model = make().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.rand(2, 3, 64, 64)
    (usual, drawn), calls = step(model, images), []
    usual = {name: value.clone() for name, value in usual.items()}
    model.load_state_dict(state)
    blocks = blocks_of(model)
    assert len(blocks) > 3
    inner = [next(part for part in block.modules() if isinstance(part, nn.Conv2d | nn.Linear)) for block in blocks]
    hooks = [one.register_forward_pre_hook(lambda module, _: calls.append(module)) for one in inner]
    with recomputed_blocks(model):
        again, drawn_again = step(model, images)
    assert usual.keys() == again.keys()
    for name, value in usual.items():
        torch.testing.assert_close(again[name], value, msg=name)
    assert torch.equal(drawn, drawn_again)
    assert all(calls.count(one) == 2 for one in inner)
    calls.clear()
    with recomputed_blocks(model), torch.no_grad():
        model(images)
    step(model, images)
    assert all(calls.count(one) == 2 for one in inner)
    assert not any("forward" in module.__dict__ for module in model.modules())
    for hook in hooks:
        hook.remove()


def test_a_block_with_a_value_per_channel_is_run_again_as_it_was():
    """One image behind a global pooling: batch norm runs on its running statistics, the second time as well."""
    pooled = nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4))
    model = nn.Sequential(pooled, nn.Conv2d(4, 2, 1)).train()
    assert blocks_of(model) == [pooled]
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    gradients = []
    for context in (recomputed_blocks(model), nullcontext()):
        with context, training_norms(1):
            loss = model(image).square().sum()
        image.grad = None
        loss.backward()
        gradients.append(image.grad.clone())
    torch.testing.assert_close(*gradients)


def test_a_network_without_blocks_is_refused_in_one_line():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with pytest.raises(ModelError, match="Sequential has no list of blocks"), recomputed_blocks(model):
        pass
    scripted = torch.jit.trace(small().eval(), torch.rand(1, 3, 32, 32))
    with pytest.raises(ModelError, match="TorchScript"), recomputed_blocks(scripted):
        pass


def test_training_takes_the_options(tmp_path):
    with pytest.raises(ModelError, match="checkpoint_activations"):
        run_small(find_stage("minent"), tmp_path, loop=replace(LOOP, checkpoint_activations=True))
    with pytest.raises(RecipeError, match="together"):
        Recipe(checkpoint_activations=True, compile="on")


@pytest.mark.slow
def test_compiled_training_ends_where_usual_training_does(tmp_path):
    sgd = replace(LOOP, optimizer="sgd")  # Adam makes a step of a rounding error; compiled dropout drops other places
    trained = [
        run_small(find_stage("minent"), tmp_path / how, loop=replace(sgd, compile=how), dropout=0.0).segmenter
        for how in ("off", "on")
    ]
    for usual, compiled in zip(*(one.state_dict().values() for one in trained), strict=True):
        torch.testing.assert_close(compiled, usual, rtol=1e-3, atol=1e-5)
