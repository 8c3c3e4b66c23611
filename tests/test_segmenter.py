"""Any network as g after f: outputs of every form and size, and refusal where it is not clear which layer is g."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from das3.errors import ModelError
from das3.segmenter import Preprocess, Segmenter, find_classifier, main_logits


class Net(nn.Module):
    """A body at a stride, an auxiliary head and a main one, returned in some form."""

    def __init__(self, form=lambda main, aux: main, stride=4, classes=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.aux = nn.Conv2d(8, classes, 1)
        self.last = nn.Conv2d(8, classes, 1)
        self.form = form

    def forward(self, x):
        features = self.body(x)
        return self.form(self.last(features), self.aux(features))


class Output:
    def __init__(self, logits):
        self.logits = logits


FORMS = {
    "tensor": lambda main, aux: main,
    "dict of torchvision": lambda main, aux: {"aux": aux, "out": main},
    "dict with logits": lambda main, aux: {"loss": None, "logits": main},
    "tuple": lambda main, aux: (main, aux),
    "list": lambda main, aux: [main, aux],
    "object": lambda main, aux: Output(main),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stride", [1, 4, 8])
def test_any_output_at_any_stride(form, stride):
    segmenter = Segmenter(Net(FORMS[form], stride))
    assert segmenter.classifier == ("last",)
    with torch.no_grad():
        assert segmenter(torch.rand(2, 3, 41, 57)).shape == (2, 4, 41, 57)


def test_output_key():
    net = Net(lambda main, aux: {"first": aux, "second": main})
    assert Segmenter(net, output_key="second").classifier == ("last",)
    assert Segmenter(net).classifier == ("aux",)
    assert Segmenter(Net(lambda main, aux: (aux, main)), output_key=1).classifier == ("last",)
    with pytest.raises(ModelError, match="--output-key"):
        Segmenter(net, output_key="third")


@pytest.mark.parametrize(
    "output", [None, {}, (), {"out": "text"}, torch.zeros(2, 3), torch.zeros(1, 2, 3, 3, dtype=torch.long)]
)
def test_outputs_without_logits(output):
    with pytest.raises(ModelError, match="--output-key"):
        main_logits(output)


def test_classifier_by_name():
    segmenter = Segmenter(Net(), classifier="body.0")
    chosen = {id(p) for p in segmenter.classifier_parameters()}
    assert {n for n, p in segmenter.model.named_parameters() if id(p) in chosen} == {"body.0.weight", "body.0.bias"}
    with pytest.raises(ModelError, match="no layer with weights"):
        Segmenter(Net(), classifier="head")
    with pytest.raises(ModelError, match="no layer with weights"):
        Segmenter(Net(), classifier="body.2")


def then(*layers):
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1), *layers)


class Linear(nn.Module):
    """A classifier that is a linear layer on tokens, behind a transposition."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 6, 4, 4)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.body(x)
        return self.head(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[-2:])


@pytest.mark.parametrize(
    ("model", "classifier"),
    [
        (then(), ("2",)),
        (then(nn.Dropout2d(), nn.UpsamplingBilinear2d(scale_factor=2)), ("2",)),
        (then(nn.Upsample(scale_factor=2, mode="bicubic")), ("2",)),
        (then(nn.PixelShuffle(1)), ("2",)),
        (nn.Sequential(nn.Conv2d(3, 6, 2, 2), nn.ConvTranspose2d(6, 4, 2, 2)), ("1",)),
        (Linear(), ("head",)),
    ],
)
def test_classifier_before_resizing_and_reshaping(model, classifier):
    assert find_classifier(model, torch.rand(1, 3, 16, 16)) == classifier


class Temperature(nn.Module):
    """Nothing tells whether g is the convolution or the temperature after it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.conv(x) / self.temperature


def test_refuses_when_unsure():
    with pytest.raises(ModelError, match="--classifier, one of: conv"):
        Segmenter(Temperature())
    assert Segmenter(Temperature(), classifier="conv").classifier == ("conv",)
    with pytest.raises(ModelError, match="PReLU"):
        find_classifier(then(nn.PReLU(4)), torch.rand(1, 3, 8, 8))
    with pytest.raises(ModelError, match="BatchNorm2d"):
        find_classifier(then(nn.BatchNorm2d(4)), torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("last", [nn.Softmax(dim=1), nn.Sigmoid()])
def test_refuses_probabilities(last):
    with pytest.raises(ModelError, match="probabilities"):
        Segmenter(then(last, nn.UpsamplingBilinear2d(scale_factor=2)))


def test_looking_at_a_network_leaves_it_as_it_is():
    net = Net().train()
    net.body[1].eval().requires_grad_(False)
    torch.manual_seed(3)
    rng = torch.get_rng_state()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    Segmenter(net)
    assert net.training
    assert net.last.training
    assert not net.body[1].training
    assert not net.body[1].weight.requires_grad
    assert net.last.weight.requires_grad
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


class Takes(nn.Module):
    """Takes some input sizes only."""

    def __init__(self, accepts):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.accepts = accepts

    def forward(self, x):
        if not self.accepts(*x.shape[-2:]):
            raise RuntimeError("wrong size")
        return self.conv(x)


def multiples(n):
    return lambda h, w: h % n == 0 and w % n == 0


@pytest.mark.parametrize(
    ("accepts", "sides"),
    [
        *((multiples(n), (max(n, 8) if n > 1 else 1, False)) for n in (1, 2, 8, 16, 32, 64)),
        (lambda h, w: h == w, (1, True)),
        (lambda h, w: h == w and h % 16 == 0, (16, True)),
        (lambda h, w: h == w == 256, (256, True)),
    ],
)
def test_input_sizes(accepts, sides):
    """Whatever sizes a network takes, das3 gives it those, and returns logits at the image's size."""
    segmenter = Segmenter(Takes(accepts))
    assert (segmenter.divisor, segmenter.square) == sides
    for size in ((70, 45), (30, 64), (1, 2)):
        images = torch.rand(1, 3, *size)
        with torch.no_grad():
            wanted = segmenter.model.conv(segmenter.preprocess(images))
            torch.testing.assert_close(segmenter(images), wanted)


def test_network_of_one_size():
    with pytest.raises(ModelError, match="--size"):
        Segmenter(Takes(lambda h, w: h == w == 48))
    segmenter = Segmenter(Takes(lambda h, w: h == w == 48), preprocess=Preprocess(size=(48, 48)))
    assert segmenter(torch.rand(1, 3, 40, 48)).shape == (1, 2, 40, 48)
    with pytest.raises(ModelError, match="48×96 pixels only"):
        Segmenter(Takes(lambda h, w: (h, w) == (48, 96)), preprocess=Preprocess(size=(48, 96)))


def test_broken_network():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(5, 2, 1)

        def forward(self, x):
            return self.conv(x[:, :4])

    with pytest.raises(ModelError, match=r"can't be run.*5"):
        Segmenter(Broken())


def test_one_sigmoid_logit_is_two_classes():
    segmenter = Segmenter(Net(classes=1, stride=1))
    assert segmenter.num_classes == 2
    images = torch.rand(2, 3, 9, 7)
    with torch.no_grad():
        z = segmenter.eval().model(segmenter.preprocess(images))
        torch.testing.assert_close(segmenter(images).softmax(1)[:, 1:], z.sigmoid())


def test_align_corners():
    images = torch.rand(1, 3, 20, 20)
    for align in (False, True):
        segmenter = Segmenter(Net(), align_corners=align).eval()
        with torch.no_grad():
            wanted = F.interpolate(segmenter.native_logits(images), size=(20, 20), mode="bilinear", align_corners=align)
            assert torch.equal(segmenter(images), wanted)


def test_preprocess():
    pixels = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1)
    caffe = Preprocess((104, 117, 123), (1, 1, 2), input_max=255, channels="bgr")
    torch.testing.assert_close(caffe(pixels).flatten(), torch.tensor([-104.0, 127.5 - 117, (255 - 123) / 2]))
    for wrong in ({"std": (1, 0, 1)}, {"mean": (1, 2)}, {"channels": "hsv"}, {"input_max": 0}):
        with pytest.raises(ModelError):
            Preprocess(**wrong)


def test_class_names_must_be_as_many_as_classes():
    assert Segmenter(Net()).class_names == ("class 0", "class 1", "class 2", "class 3")
    with pytest.raises(ModelError, match=r"4 classes but 2 class names"):
        Segmenter(Net(), class_names=["a", "b"])
