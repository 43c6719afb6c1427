"""What is known of a loaded model beside its circuit, and how the circuit is bound to an input."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tapeout.ir import Add, Array, Circuit, Einsum, GeneralFunction, I, Module, module_new_bind
from tapeout.ir.errors import ModelError, ShapeError


@dataclass(frozen=True, slots=True)
class TransformerParams:
    """The sizes of a model.

    Attributes:
        num_layers: blocks.
        num_heads: query heads a layer.
        num_kv_heads: key/value heads a layer; fewer than query heads where these share them.
        head_size: size of a head.
        hidden_size: size of the residual stream.
        mlp_size: neurons a layer.
        vocab_size: entries of the vocabulary.
        max_positions: the longest sequence that the model knows positions for.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    hidden_size: int
    mlp_size: int
    vocab_size: int
    max_positions: int


@dataclass(frozen=True, slots=True)
class TransformerInfo:
    """A model's sizes and how positions enter it.

    Attributes:
        params: the sizes.
        family: the architecture's name ("gpt2", "llama").
        rope_theta: base of the rotary embeddings' wavelengths; None for learnt positions.
        source: where the weights came from.
    """

    params: TransformerParams
    family: str
    rope_theta: float | None = None
    source: str = ""

    def bind_to_input(
        self,
        c: Circuit,
        inp_tok_embeds: Circuit,
        pos_embed_weights: Circuit | None = None,
        inp_mask: Circuit | None = None,
        prefix: str = "t",
    ) -> Module:
        """Binds a model to embedded tokens: adds positions, the causal mask and, where used, rotary tables.

        Args:
            c: the model, `t.bind_w` or what passes made of it.
            inp_tok_embeds: the tokens' embeddings [SEQ, HIDDEN].
            pos_embed_weights: the table of learnt positions [positions, HIDDEN], if the model has one.
            inp_mask: what may be attended to besides being earlier: [SEQ] of 0 and 1, over keys.
            prefix: the first part of the new nodes' names.

        Raises:
            ModelError: if learnt positions are missing, or the sequence is longer than the model's.
            ShapeError: if the length of the sequence is not known.
        """
        length = inp_tok_embeds.shape[-2]
        if not isinstance(length, int):
            raise ShapeError(
                f"the number of tokens of {inp_tok_embeds!r} is the symbolic size {length}",
                hint="masks and positions need its value: give the tokens' symbol a number as its size",
            )
        if length > self.params.max_positions:
            raise ModelError(
                f"{length} tokens are more than the {self.params.max_positions} positions of "
                f"{self.source or self.family}",
                hint="shorten the prompts",
            )
        dtype = inp_tok_embeds.torch_dtype or torch.float32
        bindings = [("t.input", self._input(inp_tok_embeds, pos_embed_weights, length, prefix))]
        bindings.append(("a.mask", self._mask(inp_mask, length, dtype, prefix)))
        if self.rope_theta is not None:
            cos, sin = rotary_tables(length, self.params.head_size, self.rope_theta, dtype)
            bindings += [("a.rotary.cos", Array(cos, "t.a.c.cos")), ("a.rotary.sin", Array(sin, "t.a.c.sin"))]
        return module_new_bind(c, *bindings, name=f"{prefix}.call")

    def bind_to_input_tokens(
        self, c: Circuit, toks: Circuit, tok_embed_weights: Circuit, pos_embed_weights: Circuit | None = None
    ) -> Module:
        """Binds a model to tokens [SEQ], which it looks up in the table of embeddings [VOCAB, HIDDEN]."""
        embeds = GeneralFunction.gen_index(tok_embed_weights, toks, 0, name="tok_embeds")
        return self.bind_to_input(c, embeds, pos_embed_weights)

    def _input(self, embeds: Circuit, positions: Circuit | None, length: int, prefix: str) -> Circuit:
        if self.rope_theta is not None:
            return embeds
        if positions is None:
            raise ModelError(
                f"{self.family} has learnt positions, and none were given",
                hint='pass circuits["t.w.pos_embeds"] as third argument',
            )
        return Add(embeds, positions.index(I[:length], name="t.w.pos_embeds_idxed"), name=f"{prefix}.inp_tok_pos")

    def _mask(self, inp_mask: Circuit | None, length: int, dtype: torch.dtype, prefix: str) -> Circuit:
        causal = Array(torch.ones(length, length, dtype=dtype).tril(), "t.a.c.causal_mask")
        if inp_mask is None:
            return causal
        return Einsum.from_einsum_string("qk,k->qk", causal, inp_mask, name=f"{prefix}.a.mask")


def rotary_tables(length: int, head_size: int, theta: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [length, head_size] of rotary embeddings, half-rotation form (Su et al. 2021).

    Computed in float32 and then rounded to `dtype`, as Hugging Face's models do: they are constants of
    the model as it was trained.
    """
    frequencies = 1.0 / theta ** (torch.arange(0, head_size, 2, dtype=torch.int64).float() / head_size)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)
