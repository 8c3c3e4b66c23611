"""Forward passes of other codebases, written from their published architectures on state dicts in their key names.

Nothing here is shared with das3: it is what the converted networks are compared with.
"""

import torch
import torch.nn.functional as F


class Random(dict):
    """A state dict that grows: the first use of a name draws its weights, so a forward pass defines its own keys."""

    def __init__(self, seed=0):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, name, shape, scale=1.0, shift=0.0):
        if name not in self:
            self[name] = torch.randn(shape, generator=self.generator) * scale + shift
        return self[name]

    def conv(self, name, x, out, kernel, bias=False, groups=1, **kwargs):
        inputs = x.shape[1] // groups
        scale = (2 / (inputs * kernel**2)) ** 0.5
        if name.endswith((".sr", ".projection")) or "patch_embed" in name:
            scale *= 0.02  # so small that the eps of the layer norm behind it counts
        weight = self.draw(f"{name}.weight", (out, inputs, kernel, kernel), scale)
        return F.conv2d(x, weight, self.draw(f"{name}.bias", (out,), scale) if bias else None, groups=groups, **kwargs)

    def linear(self, name, x, out):
        weight = self.draw(f"{name}.weight", (out, x.shape[-1]), x.shape[-1] ** -0.5)
        return F.linear(x, weight, self.draw(f"{name}.bias", (out,), 0.1))

    def bn(self, name, x):
        weight, bias, mean = (
            self.draw(f"{name}.{n}", (x.shape[1],), 0.2, s)
            for n, s in (("weight", 1), ("bias", 0), ("running_mean", 0))
        )
        if f"{name}.running_var" not in self:
            self[f"{name}.running_var"] = torch.rand(x.shape[1], generator=self.generator) + 0.5
        self.setdefault(f"{name}.num_batches_tracked", torch.tensor(7))
        return F.batch_norm(x, mean, self[f"{name}.running_var"], weight, bias, eps=1e-5)

    def ln(self, name, x, eps):
        weight, bias = self.draw(f"{name}.weight", x.shape[-1:], 0.2, 1), self.draw(f"{name}.bias", x.shape[-1:], 0.2)
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    def conv_bn_relu(self, name, x, out, kernel, **kwargs):
        """mmcv's ConvModule."""
        return F.relu(self.bn(f"{name}.bn", self.conv(f"{name}.conv", x, out, kernel, **kwargs)))


def bottleneck(sd, name, x, planes, stride, dilation, caffe):
    strides = (stride, 1) if caffe else (1, stride)
    out = F.relu(sd.bn(f"{name}.bn1", sd.conv(f"{name}.conv1", x, planes, 1, stride=strides[0])))
    out = sd.conv(f"{name}.conv2", out, planes, 3, stride=strides[1], padding=dilation, dilation=dilation)
    out = F.relu(sd.bn(f"{name}.bn2", out))
    out = sd.bn(f"{name}.bn3", sd.conv(f"{name}.conv3", out, planes * 4, 1))
    if name.endswith(".0"):
        x = sd.bn(f"{name}.downsample.1", sd.conv(f"{name}.downsample.0", x, planes * 4, 1, stride=stride))
    return F.relu(out + x)


def resnet_stages(sd, prefix, x, blocks, caffe, contract):
    """Features after layer3 and layer4, at stride 8."""
    features = []
    for stage, (count, stride, dilation) in enumerate(zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True), start=1):
        for block in range(count):
            first = block == 0
            d = max(1, dilation // 2) if first and contract else dilation
            x = bottleneck(sd, f"{prefix}layer{stage}.{block}", x, 32 * 2**stage, stride if first else 1, d, caffe)
        features.append(x)
    return features[2:]


def aspp_sum(sd, name, x, classes, branches):
    """The sum over the first `branches` of four dilated convolutions; all four have weights."""
    outs = [
        sd.conv(f"{name}.{i}", x, classes, 3, bias=True, padding=d, dilation=d) for i, d in enumerate((6, 12, 18, 24))
    ]
    return sum(outs[:branches])


def caffe_deeplab(sd, x, classes, *, heads, main, branches, blocks):
    """AdaptSegNet's, ADVENT's or LDBE's DeepLabV2; `heads` maps a head's name to the stage (3 or 4) that it reads."""
    x = F.relu(sd.bn("bn1", sd.conv("conv1", x, 64, 7, stride=2, padding=3)))
    x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
    third, fourth = resnet_stages(sd, "", x, blocks, caffe=True, contract=False)
    outs = {
        head: aspp_sum(sd, f"{head}.conv2d_list", third if s == 3 else fourth, classes, branches)
        for head, s in heads.items()
    }
    return outs[main]


def mmseg_deeplab(sd, x, classes, *, stem, contract, dilations, blocks):
    """EncoderDecoder with ResNet(V1c) and DLV2Head, before the resize to the image."""
    if stem:
        for i, (out, stride) in enumerate(((32, 2), (32, 1), (64, 1))):
            x = F.relu(
                sd.bn(
                    f"backbone.stem.{3 * i + 1}", sd.conv(f"backbone.stem.{3 * i}", x, out, 3, stride=stride, padding=1)
                )
            )
    else:
        x = F.relu(sd.bn("backbone.bn1", sd.conv("backbone.conv1", x, 64, 7, stride=2, padding=3)))
    x = F.max_pool2d(x, 3, 2, 1)
    x = resnet_stages(sd, "backbone.", x, blocks, caffe=False, contract=contract)[-1]
    name = "decode_head.aspp_modules.{}.conv"
    return sum(
        sd.conv(name.format(i), x, classes, 3, bias=True, padding=d, dilation=d) for i, d in enumerate(dilations)
    )


WIDTHS, HEADS, REDUCTIONS = (32, 64, 160, 256), (1, 2, 5, 8), (8, 4, 2, 1)  # MiT-B0, two blocks a stage


def attend(q, k, v, heads):
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def image(tokens, size):
    return tokens.transpose(1, 2).unflatten(2, size)


def tokens(x):
    return x.flatten(2).transpose(1, 2)


def mit_b0(sd, x):
    """NVIDIA's MixVisionTransformer under `backbone.`."""
    features = []
    for i, (width, heads, reduction) in enumerate(zip(WIDTHS, HEADS, REDUCTIONS, strict=True), start=1):
        embed, kernel = f"backbone.patch_embed{i}", 7 if i == 1 else 3
        x = sd.conv(f"{embed}.proj", x, width, kernel, bias=True, stride=4 if i == 1 else 2, padding=kernel // 2)
        size = x.shape[-2:]
        t = sd.ln(f"{embed}.norm", tokens(x), 1e-5)
        for name in (f"backbone.block{i}.0", f"backbone.block{i}.1"):
            normed = sd.ln(f"{name}.norm1", t, 1e-6)
            source = normed
            if reduction > 1:
                reduced = sd.conv(f"{name}.attn.sr", image(normed, size), width, reduction, bias=True, stride=reduction)
                source = sd.ln(f"{name}.attn.norm", tokens(reduced), 1e-5)
            k, v = sd.linear(f"{name}.attn.kv", source, 2 * width).chunk(2, dim=-1)
            attended = attend(sd.linear(f"{name}.attn.q", normed, width), k, v, heads)
            t = t + sd.linear(f"{name}.attn.proj", attended, width)
            hidden = sd.linear(f"{name}.mlp.fc1", sd.ln(f"{name}.norm2", t, 1e-6), 4 * width)
            hidden = sd.conv(
                f"{name}.mlp.dwconv.dwconv", image(hidden, size), 4 * width, 3, bias=True, padding=1, groups=4 * width
            )
            t = t + sd.linear(f"{name}.mlp.fc2", F.gelu(tokens(hidden)), width)
        x = image(sd.ln(f"backbone.norm{i}", t, 1e-6), size)
        features.append(x)
    return features


def mmseg_mit_b0(sd, x):
    """mmsegmentation's own MixVisionTransformer: nn.MultiheadAttention, 1×1 convolutions, one eps."""
    features = []
    for i, (width, heads, reduction) in enumerate(zip(WIDTHS, HEADS, REDUCTIONS, strict=True)):
        stage, kernel = f"backbone.layers.{i}", 7 if i == 0 else 3
        x = sd.conv(
            f"{stage}.0.projection", x, width, kernel, bias=True, stride=4 if i == 0 else 2, padding=kernel // 2
        )
        size = x.shape[-2:]
        t = sd.ln(f"{stage}.0.norm", tokens(x), 1e-6)
        for name in (f"{stage}.1.0", f"{stage}.1.1"):
            normed = source = sd.ln(f"{name}.norm1", t, 1e-6)
            if reduction > 1:
                reduced = sd.conv(f"{name}.attn.sr", image(normed, size), width, reduction, bias=True, stride=reduction)
                source = sd.ln(f"{name}.attn.norm", tokens(reduced), 1e-6)
            weight = sd.draw(f"{name}.attn.attn.in_proj_weight", (3 * width, width), width**-0.5)
            bias = sd.draw(f"{name}.attn.attn.in_proj_bias", (3 * width,), 0.1)
            q, k, v = (
                F.linear(s, w, b)
                for s, w, b in zip((normed, source, source), weight.chunk(3), bias.chunk(3), strict=True)
            )
            t = t + sd.linear(f"{name}.attn.attn.out_proj", attend(q, k, v, heads), width)
            hidden = sd.conv(
                f"{name}.ffn.layers.0", image(sd.ln(f"{name}.norm2", t, 1e-6), size), 4 * width, 1, bias=True
            )
            hidden = sd.conv(f"{name}.ffn.layers.1", hidden, 4 * width, 3, bias=True, padding=1, groups=4 * width)
            t = t + tokens(sd.conv(f"{name}.ffn.layers.4", F.gelu(hidden), width, 1, bias=True))
        x = image(sd.ln(f"{stage}.2", t, 1e-6), size)
        features.append(x)
    return features


def upsampled(features, x):
    return F.interpolate(features, size=x.shape[-2:], mode="bilinear", align_corners=False)


def embedded(sd, name, x, channels):
    return image(sd.linear(name, tokens(x), channels), x.shape[-2:])


def nvidia_segformer(sd, x, classes, channels=48):
    f = mit_b0(sd, x)
    scales = [upsampled(embedded(sd, f"decode_head.linear_c{i}.proj", f[i - 1], channels), f[0]) for i in (4, 3, 2, 1)]
    sd.draw("decode_head.conv_seg.weight", (classes, channels, 1, 1))  # the base class makes it, nothing uses it
    fused = sd.conv_bn_relu("decode_head.linear_fuse", torch.cat(scales, 1), channels, 1)
    return sd.conv("decode_head.linear_pred", fused, classes, 1, bias=True)


def daformer_segformer(sd, x, classes, channels=48):
    f = mit_b0(sd, x)
    scales = [upsampled(embedded(sd, f"decode_head.linear_c.{i}.proj", f[i], channels), f[0]) for i in range(4)]
    fused = sd.conv_bn_relu("decode_head.linear_fuse", torch.cat(scales, 1), channels, 1)
    return sd.conv("decode_head.linear_pred", fused, classes, 1, bias=True)


def mmseg_segformer(sd, x, classes, channels=48):
    f = mmseg_mit_b0(sd, x)
    scales = [upsampled(sd.conv_bn_relu(f"decode_head.convs.{i}", f[i], channels, 1), f[0]) for i in range(4)]
    fused = sd.conv_bn_relu("decode_head.fusion_conv", torch.cat(scales, 1), channels, 1)
    return sd.conv("decode_head.conv_seg", fused, classes, 1, bias=True)


def daformer(sd, x, classes, channels=32):
    f = mit_b0(sd, x)
    scales = [upsampled(embedded(sd, f"decode_head.embed_layers.{i}.proj", f[i], channels), f[0]) for i in range(4)]
    x = torch.cat(scales, 1)
    aspp = "decode_head.fuse_layer.aspp_modules"
    outs = [sd.conv_bn_relu(f"{aspp}.0", x, channels, 1)]
    for i, d in ((1, 6), (2, 12), (3, 18)):
        deep = sd.conv_bn_relu(f"{aspp}.{i}.depthwise_conv", x, x.shape[1], 3, padding=d, dilation=d, groups=x.shape[1])
        outs.append(sd.conv_bn_relu(f"{aspp}.{i}.pointwise_conv", deep, channels, 1))
    fused = sd.conv_bn_relu("decode_head.fuse_layer.bottleneck", torch.cat(outs, 1), channels, 3, padding=1)
    return sd.conv("decode_head.conv_seg", fused, classes, 1, bias=True)
