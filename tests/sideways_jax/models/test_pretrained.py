"""Weights of files in the layout of Hugging Face, and what is said of those that do not fit."""

import functools
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax import models
from sideways_jax.models import safetensors

FRAME = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
VIT = {"width": 12, "heads": 3, "blocks": 1, "cut": (2, 1)}


def write(file, tensors):
    """As https://github.com/huggingface/safetensors says."""
    header, content = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        bytes_ = np.ascontiguousarray(tensor).tobytes()
        kind = {"float32": "F32", "bfloat16": "BF16", "int64": "I64"}[tensor.dtype.name]
        place = [len(content), len(content) + len(bytes_)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": place}
        content += bytes_
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content)


def conv_norm(prefix, outputs, inputs, kernel):
    numbers = np.random.default_rng(len(prefix))
    names = {f"{prefix}.convolution.weight": (outputs, inputs, kernel, kernel)}
    names |= {
        f"{prefix}.normalization.{one}": (outputs,)
        for one in ("weight", "bias", "running_mean", "running_var")
    }
    drawn = {name: numbers.random(shape, np.float32) for name, shape in names.items()}
    return drawn | {f"{prefix}.normalization.num_batches_tracked": np.zeros((), np.int64)}


def resnet18_file(width=4, classes=3):
    """The names of `microsoft/resnet-18`."""
    tensors = conv_norm("resnet.embedder.embedder", width, 3, 7)
    inputs = width
    for stage in range(4):
        outputs = width * 2**stage
        for layer in range(2):
            prefix = f"resnet.encoder.stages.{stage}.layers.{layer}"
            tensors |= conv_norm(f"{prefix}.layer.0", outputs, inputs, 3)
            tensors |= conv_norm(f"{prefix}.layer.1", outputs, outputs, 3)
            if inputs != outputs:
                tensors |= conv_norm(f"{prefix}.shortcut", outputs, inputs, 1)
            inputs = outputs
    head = np.arange(classes * inputs, dtype=np.float32).reshape(classes, inputs)
    return tensors | {"classifier.1.weight": head, "classifier.1.bias": head[:, 0]}


def vit_file(classes=3):
    """The names of `google/vit-base-patch16-224`."""
    shapes = {
        "vit.embeddings.cls_token": (1, 1, 12),
        "vit.embeddings.position_embeddings": (1, 5, 12),
        "vit.embeddings.patch_embeddings.projection.weight": (12, 3, 16, 16),
        "vit.embeddings.patch_embeddings.projection.bias": (12,),
        "vit.layernorm.weight": (12,),
        "vit.layernorm.bias": (12,),
        "classifier.weight": (classes, 12),
        "classifier.bias": (classes,),
    }
    dense = {
        "attention.attention.query": (12, 12), "attention.attention.key": (12, 12),
        "attention.attention.value": (12, 12), "attention.output.dense": (12, 12),
        "intermediate.dense": (48, 12), "output.dense": (12, 48),
        "layernorm_before": (12,), "layernorm_after": (12,),
    }  # fmt: skip
    for name, shape in dense.items():
        shapes[f"vit.encoder.layer.0.{name}.weight"] = shape
        shapes[f"vit.encoder.layer.0.{name}.bias"] = shape[:1]
    numbers = np.random.default_rng(0)
    return {name: numbers.random(shape, np.float32) for name, shape in shapes.items()}


@functools.cache
def shapes(name, options):
    network = models.make(name, 3, **dict(options))
    return jax.eval_shape(network.init, jax.random.key(0), FRAME)


def fitted(name, tensors, **options):
    return models.with_weights(name, tensors, *shapes(name, tuple(options.items())))


def test_resnet18(tmp_path):
    tensors = resnet18_file()
    write(tmp_path / "file", tensors)
    result = fitted("resnet18", safetensors.read(tmp_path / "file"), width=4)
    assert not result.new_head
    [stem, _], [_, head] = result.params[0], result.params[4]
    stem_file = tensors["resnet.embedder.embedder.convolution.weight"]
    np.testing.assert_array_equal(stem["layer0"]["conv"]["kernel"], stem_file.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(head["linear"]["kernel"], tensors["classifier.1.weight"].T)
    # Stage 2 begins with layer 5: the second of module 2, cut by two.
    block, seen = result.params[2][1], result.state[2][1]["batch_stats"]
    prefix = "resnet.encoder.stages.2.layers.0.shortcut"
    scale = tensors[f"{prefix}.normalization.weight"]
    np.testing.assert_array_equal(block["shortcut"]["norm"]["scale"], scale)
    for ours, theirs in {"mean": "running_mean", "var": "running_var"}.items():
        given = tensors[f"{prefix}.normalization.{theirs}"]
        np.testing.assert_array_equal(seen["shortcut"]["norm"][ours], given)
    whole = fitted("resnet18", tensors, width=4, cut=(10,))  # The same, however it is cut.
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(whole), jax.tree.leaves(result))


def test_vit():
    tensors = vit_file()
    result = fitted("vit_s16", tensors, **VIT)
    embedding, block = result.params[0]
    patches = tensors["vit.embeddings.patch_embeddings.projection.weight"]
    np.testing.assert_array_equal(embedding["patches"]["kernel"], patches.transpose(2, 3, 1, 0))
    inner = tensors["vit.encoder.layer.0.intermediate.dense.weight"]
    np.testing.assert_array_equal(block["mlp_in"]["kernel"], inner.T)
    np.testing.assert_array_equal(
        result.params[1]["norm"]["scale"], tensors["vit.layernorm.weight"]
    )


def test_the_head_is_left_alone_for_other_classes():
    result = fitted("resnet18", resnet18_file(classes=1000), width=4)
    assert (result.new_head, result.classes) == (True, 1000)
    head = result.params[4][1]["linear"]
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(head))
    assert isinstance(result.params[4][0]["layer0"]["conv"]["kernel"], jax.Array)


def test_a_file_of_the_network_without_a_head():
    tensors = {
        name.removeprefix("vit."): one for name, one in vit_file().items() if "classif" not in name
    }
    tensors |= {f"pooler.dense.{one}": np.zeros(12, np.float32) for one in ("weight", "bias")}
    result = fitted("vit_s16", tensors, **VIT)
    assert (result.new_head, result.classes) == (True, None)


def test_what_does_not_fit_is_named():
    tensors = resnet18_file(width=4)
    del tensors["resnet.encoder.stages.1.layers.0.layer.1.convolution.weight"]
    tensors["resnet.more"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="the file is not of this network") as error:
        fitted("resnet18", tensors, width=4)
    assert "missing: resnet.encoder.stages.1.layers.0.layer.1.convolution.weight;" in str(
        error.value
    )
    assert "not known: resnet.more." in str(error.value)
    with pytest.raises(ValueError, match="of another shape") as error:
        fitted("resnet18", resnet18_file(width=8), width=4)
    assert (
        "resnet.embedder.embedder.convolution.weight is [8, 3, 7, 7] and has to be [4, 3, 7, 7]"
        in str(error.value)
    )
    assert "more. Give" in str(error.value)
    with pytest.raises(
        ValueError, match=r"position_embeddings is \[1, 5, 12\] .* one size of frame"
    ):
        fitted("vit_s16", vit_file(), **(VIT | {"patch": 8}))


def test_networks_without_a_layout():
    with pytest.raises(ValueError, match="unknown network with pretrained weights 'googlenet'"):
        models.with_weights("googlenet", {}, (), ())


def test_half_precision(tmp_path):
    tensors = {name: one.astype(jnp.bfloat16) if one.dtype == np.float32 else one
               for name, one in resnet18_file().items()}  # fmt: skip
    write(tmp_path / "file", tensors)
    result = fitted("resnet18", safetensors.read(tmp_path / "file"), width=4)
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {jnp.dtype("float32")}


def test_damaged_files(tmp_path):
    file = tmp_path / "file"
    write(file, {"a": np.ones((3, 2), np.float32)})
    np.testing.assert_array_equal(safetensors.read(file)["a"], np.ones((3, 2)))
    whole = file.read_bytes()
    for length in (0, 5, 20, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"no whole file|is damaged"):
            safetensors.read(file)
    file.write_bytes(whole.replace(b"F32", b"F99"))
    with pytest.raises(ValueError, match="a is of F99; it can be F64, "):
        safetensors.read(file)
    file.write_bytes(b"PK\x03\x04 a file of PyTorch's own, no header")
    with pytest.raises(ValueError, match=r"often called model.safetensors"):
        safetensors.read(file)
