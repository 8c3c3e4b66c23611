"""Batch norm that sees one value per channel: behind a global pooling, where a batch holds one image."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import worlds
from das3.api import adapt
from das3.errors import ModelError
from das3.norms import _SharedBatchNorm, batch_norms, reestimate, training_norms
from das3.segmenter import Segmenter


class Pooled(nn.Module):
    """A branch of the whole image beside one of its places, as DeepLabV3, PSPNet and UPerNet have it."""

    def __init__(self, width=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1, bias=False))
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, images):
        features = self.stem(images)
        return self.head(features + self.norm(self.branch(features)))


def pooled():
    torch.manual_seed(0)
    return Segmenter(Pooled(), example_size=(8, 8))


def images(count, seed=1):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def pooled_values(network, batch):
    """What enters the pooled layer, with the statistics that the network has."""
    found = []
    handle = network.model.norm.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].flatten(1)))
    with torch.no_grad():
        network.eval()(batch)
    handle.remove()
    return found[-1]  # the first call of small images tries sizes


def freeze_stem(network):
    """The stem's own statistics then do not change what enters the pooled layer."""
    network.model.stem[1] = nn.Identity()
    return network


@pytest.mark.parametrize("count", [2, 5])
def test_single_images_give_mean_and_variance_over_the_images(count):
    network = freeze_stem(pooled())
    values = pooled_values(network, images(count))
    reestimate(network, list(images(count).split(1)))
    torch.testing.assert_close(network.model.norm.running_mean, values.mean(0))
    torch.testing.assert_close(network.model.norm.running_var, values.var(0))


def normalised(function, dtype):
    """Output and gradients of a batch norm of the same values, in float64."""
    values = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    wide = torch.float32 if dtype is torch.bfloat16 else dtype
    inputs = values.to(dtype), torch.tensor([0.5, 1.0, 2.0], dtype=wide), torch.tensor([0.1, 0.2, 0.3], dtype=wide)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    (out.double() ** 3).sum().backward()
    return [out.detach().double(), *(leaf.grad.double() for leaf in leaves)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.bfloat16, 0.1)])
def test_batch_norm_over_all_processes_is_batch_norm_where_there_is_one(dtype, tolerance):
    expected = normalised(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True, eps=1e-5), torch.float64)
    found = normalised(lambda x, w, b: _SharedBatchNorm.apply(x, w, b, 1e-5)[0], dtype)
    for one, other in zip(expected, found, strict=True):
        assert (one - other).abs().max() <= tolerance * one.abs().max()


def test_a_last_image_alone_is_left_out_where_other_batches_have_more():
    whole, rest = freeze_stem(pooled()), freeze_stem(pooled())
    reestimate(whole, list(images(5).split(4)))
    reestimate(rest, [images(5)[:4]])
    for one, other in zip(batch_norms(whole), batch_norms(rest), strict=True):
        torch.testing.assert_close(one.running_mean, other.running_mean)
        torch.testing.assert_close(one.running_var, other.running_var)


def test_the_layers_that_are_not_pooled_count_every_batch():
    network = pooled()
    reestimate(network, list(images(5).split(4)))
    with torch.no_grad():
        outputs = [network.model.stem[0](network.preprocess(part)) for part in images(5).split(4)]
    expected = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
    torch.testing.assert_close(network.model.stem[1].running_mean, expected)


def test_one_image_in_all_leaves_the_pooled_layer_alone():
    network = pooled()
    before = network.model.norm.running_var.clone()
    reestimate(network, [images(1)])
    assert torch.equal(network.model.norm.running_var, before)
    assert torch.equal(network.model.norm.running_mean, torch.zeros(4))


def test_a_training_step_on_one_image_runs_on_the_running_statistics():
    network = pooled().train()
    norm, before = network.model.norm, {k: v.clone() for k, v in network.model.norm.state_dict().items()}
    with training_norms(1):
        out = network(images(1))
    out.sum().backward()
    assert norm.weight.grad.abs().sum() > 0
    assert network.model.stem[0].weight.grad.abs().sum() > 0
    assert torch.equal(norm.running_mean, before["running_mean"])
    assert torch.equal(norm.running_var, before["running_var"])
    assert not torch.equal(network.model.stem[1].running_mean, torch.zeros(4))
    norm.eval()
    torch.testing.assert_close(network(images(1)), out)  # the other layer is in training mode in both


def test_larger_batches_are_normalised_as_without():
    network = pooled().train()
    expected = network(images(2))
    with training_norms(2):
        assert torch.equal(network(images(2)), expected)
    with training_norms(1):
        assert torch.equal(network(images(2)), expected)


class WithItsOwnForward(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: calls the function, not the class above it."""

    def forward(self, values):
        training = self.training
        out = nn.functional.batch_norm(
            values, self.running_mean, self.running_var, self.weight, self.bias, training, self.momentum, self.eps
        )
        return out.relu()


def test_layers_with_a_forward_of_their_own_keep_it():
    network = pooled()
    network.model.norm = WithItsOwnForward(4)
    network.train()
    with training_norms(1):
        network(images(1)).sum().backward()
    reestimate(network, list(images(3).split(1)))
    assert not torch.equal(network.model.norm.running_mean, torch.zeros(4))


def test_an_error_in_the_middle_leaves_everything_as_it_was():
    network = pooled().train()
    network.model.head.eval()
    modes = [m.training for m in network.modules()]
    before = {k: v.clone() for k, v in network.state_dict().items()}

    def broken():
        yield images(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reestimate(network, broken())
    assert [m.training for m in network.modules()] == modes
    after = network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert [n.momentum for n in batch_norms(network)] == [0.1, 0.1]
    network.train()
    with pytest.raises(ModelError, match="more than 1 value"):  # PyTorch's own rule is back
        network(images(1))


def test_layers_that_are_not_called_keep_their_statistics():
    network = pooled()
    network.model.unused = nn.BatchNorm2d(2)
    network.model.unused.running_mean.fill_(3)
    reestimate(network, [images(2)])
    assert torch.equal(network.model.unused.running_mean, torch.full((2,), 3.0))


STAGES = {
    "stages": ["bn", "align", "selftrain", "propagate"],
    **{name: {"steps": 2, "color_transforms": False} for name in ("align", "selftrain", "propagate")},
    "device": "cpu",
    "quiet": True,
    "crop": (32, 32),
}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_whole_run_of_a_pooled_network(tmp_path, batch_size):
    """Of five images; with batches of four, one is left for the last group."""
    target = worlds.write_world(tmp_path / "target", "target", count=5, size=(32, 32))
    torch.manual_seed(0)
    result = adapt(Pooled(), target / "images", out=tmp_path / "run", batch_size=batch_size, **STAGES)
    assert all(value.isfinite().all() for value in result.model.state_dict().values())
    assert not torch.equal(result.model.norm.running_mean, torch.zeros(4))


def test_torchvision_deeplabv3_at_batch_size_1(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    target = worlds.write_world(tmp_path / "target", "target", count=3, size=(32, 32))
    torch.manual_seed(0)
    network = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    )
    options = {**STAGES, "stages": ["align"], "guard": "off", "report": False}
    result = adapt(network, target / "images", out=tmp_path / "run", batch_size=1, **options)
    assert all(value.isfinite().all() for value in result.model.state_dict().values())


def test_layers_that_synchronise_themselves_are_re_estimated_and_left_as_they_were():
    usual, own = pooled(), pooled()
    own.model = nn.SyncBatchNorm.convert_sync_batchnorm(own.model)
    forward = nn.SyncBatchNorm.forward
    for network in (usual, own):
        reestimate(network, list(images(5).split(4)))
    assert any(isinstance(norm, nn.SyncBatchNorm) for norm in batch_norms(own))
    for one, other in zip(batch_norms(own), batch_norms(usual), strict=True):
        torch.testing.assert_close(one.running_mean, other.running_mean)
        torch.testing.assert_close(one.running_var, other.running_var)
    with training_norms(1):
        with training_norms(1):
            pass
        assert nn.SyncBatchNorm.forward is not forward
    assert nn.SyncBatchNorm.forward is forward
