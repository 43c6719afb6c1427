"""The seed's code runs as it stands, and so do the example and the README's Python block."""

from __future__ import annotations

import importlib.util
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch

import tapeout as rc
from tapeout.tasks.ioi import set_default_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SEED = Path(__file__).with_name("seed_walk.txt")
EXAMPLE = ROOT / "examples" / "ioi_model_loading.py"
README = ROOT / "README.md"


@pytest.fixture(autouse=True)
def _default_tokenizer_is_restored() -> Iterator[None]:
    yield
    set_default_tokenizer(None)


def logits_of(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits


# -- the seed


@pytest.fixture(scope="module")
def gpt2_small_shaped() -> Any:
    """A model with the layers and heads of GPT-2 small, and hardly any width."""
    return tiny.gpt2(len(tiny.word_tokenizer()), layers=12, heads=12, head_size=2)


@pytest.fixture(scope="module")
def walked(gpt2_small_shaped: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the seed's code leaves behind. Its `gpt2` is a directory of that name."""
    here = tmp_path_factory.mktemp("seed")
    tiny.save(gpt2_small_shaped, here / "gpt2", tiny.word_tokenizer())
    names: dict[str, Any] = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        exec(compile(SEED.read_text(encoding="utf-8"), SEED.name, "exec"), names)
    return names


def test_seed_gives_the_logits_of_hugging_face(walked: dict[str, Any], gpt2_small_shaped: Any) -> None:
    tokens = walked["ioi_dataset"].prompts_toks
    assert tokens.shape == (100, 16)
    expected = logits_of(gpt2_small_shaped, tokens)
    assert walked["all_logits"].shape == (5, 16, expected.shape[-1])
    torch.testing.assert_close(walked["all_logits"], expected[:5], rtol=0, atol=1e-4)
    picked = expected[:, -1].gather(1, walked["io_s_labels"])
    torch.testing.assert_close(walked["results"], picked[:, 0] - picked[:, 1], rtol=0, atol=1e-4)
    assert walked["results"].std() > 0.5  # the model tells prompts apart


def test_seed_leaves_its_names(walked: dict[str, Any]) -> None:
    circuit = walked["split_circuit"]
    assert circuit.name == "logits"
    for name in (
        "embeds",
        "a1.input",
        "final.input",
        "m11",
        "a11.p_bias",
        "m0.p_bias",
        "a0_h0_t0",
        "m11_t15",
    ):
        assert len(circuit.get(name)) == 1, name
    assert circuit.get_unique("a3.h11_by_pos").children[15].name == "a3_h11_t15"
    assert not circuit.are_any_found(rc.Regex(r"^b\d+(.[am](.p_bias|.h\d+)?)?$"))
    assert not circuit.are_any_found(rc.Regex(r"_at_idx_"))


def test_seed_names_gpt2_small_as_its_author_found_it(walked: dict[str, Any]) -> None:
    assert len(walked["actual"]) == 26


def test_seed_text_changes_only_imports() -> None:
    """Nothing of the library is imported but what took the places of the seed's imports."""
    found = re.findall(r"^(?:import|from) .*tapeout.*$", SEED.read_text(encoding="utf-8"), re.MULTILINE)
    assert found == [
        "import tapeout as rc",
        "from tapeout.passes import To, configure_transformer",
        "from tapeout import I",
        "from tapeout.tasks.ioi import IOIDataset, print_max_min_by_tok_k_torch",
        "import tapeout.models as remix_utils",
    ]


# -- the example


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ioi_model_loading", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", [tiny.gpt2, tiny.llama])
def test_example(
    family: Callable[[int], Any], example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny.word_tokenizer()
    model = family(len(tokenizer))
    tiny.save(model, tmp_path, tokenizer)
    differences = example.main(str(tmp_path), 6)

    dataset = example.IOIDataset("mixed", 6, tokenizer=tokenizer)
    last = logits_of(model, dataset.prompts_toks)[:, -1]
    rows = torch.arange(6)
    expected = last[rows, dataset.io_tokenIDs] - last[rows, dataset.s_tokenIDs]
    torch.testing.assert_close(differences, expected, rtol=0, atol=1e-4)

    printed = capsys.readouterr().out
    assert "before conforming: <b0.a [SEQ," in printed
    assert "after conforming:  <b0.a [16," in printed
    assert "split_circuit gives the very same circuit" in printed
    assert dataset.prompts_text[0] in printed


def test_example_from_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny.word_tokenizer()
    tiny.save(tiny.gpt2(len(tokenizer)), tmp_path, tokenizer)
    monkeypatch.setattr("sys.argv", [str(EXAMPLE), str(tmp_path), "-n", "1"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "mean over 1 prompts: " in capsys.readouterr().out


# -- the README


def test_readme_block(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs as it stands, but for the model and its head."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for written, here in (('"smollm2-135m"', repr(str(tmp_path))), ("a23.h3", "a1.h1")):
        assert block.count(written) == 1
        block = block.replace(written, here)
    tokenizer = tiny.word_tokenizer()
    model = tiny.gpt2(len(tokenizer))
    tiny.save(model, tmp_path, tokenizer)
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)

    data = names["data"]
    last = logits_of(model, data.prompts_toks)[:, -1]
    rows = torch.arange(len(data))
    whole = last[rows, data.io_tokenIDs] - last[rows, data.s_tokenIDs]
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"whole: {whole.mean():.2f} ± {whole.std():.2f}"

    def silence(_: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        mixed = inputs[0].clone()
        mixed[:, -1, 4:8] = 0.0  # head 1 of two
        return (mixed,)

    model.transformer.h[1].attn.c_proj.register_forward_pre_hook(silence)
    last = logits_of(model, data.prompts_toks)[:, -1]
    ablated = last[rows, data.io_tokenIDs] - last[rows, data.s_tokenIDs]
    assert second == f"without head 23.3: {ablated.mean():.2f} ± {ablated.std():.2f}"
    assert first.partition(":")[2] != second.partition(":")[2]


@pytest.mark.parametrize("document", [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"])
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if "://" not in link and not (document.parent / link).exists()] == []
