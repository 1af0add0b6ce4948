"""One run of the reference tool (circuit-tracer 0.5.0, TransformerLens backend), measured.

    REFERENCE_PYTHON reference_run.py attribute CASE [--max-features N] [--matrix FILE]
    REFERENCE_PYTHON reference_run.py prune NODES

It runs in the reference tool's own environment, because its import name is ours too; loading is
not measured; --threads N is 1 by default. The result is one JSON object on standard output.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
import case
import torch
from meter import Meter


def load(folder: Path) -> Any:
    """The reference tool's replacement model, with weights treated as its own loader does."""
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights
    from transformers import AutoTokenizer, LlamaForCausalLM

    from circuit_tracer.replacement_model.replacement_model_transformerlens import (
        TransformerLensReplacementModel,
    )
    from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set

    name = str(folder / "model")
    config = HookedTransformerConfig(
        n_layers=case.LAYERS,
        d_model=case.WIDTH,
        n_ctx=case.CONTEXT,
        d_head=case.WIDTH // case.HEADS,
        n_heads=case.HEADS,
        d_mlp=case.INNER,
        d_vocab=case.VOCABULARY,
        act_fn="silu",
        eps=1e-5,
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=case.WIDTH // case.HEADS,
        rotary_base=10000,
        use_attn_scale=True,
        device="cpu",
        dtype=torch.float32,
        init_weights=False,
        tokenizer_name=name,
        model_name="LlamaForCausalLM",
        original_architecture="LlamaForCausalLM",
        default_prepend_bos=True,
        n_devices=1,
    )
    found = LlamaForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    state = {key: value.clone() for key, value in convert_llama_weights(found, config).items()}
    files = {
        layer: str(folder / "transcoders" / f"layer_{layer}.safetensors")
        for layer in range(case.LAYERS)
    }
    transcoders = load_transcoder_set(
        files,
        scan="local/benchmark",
        feature_input_hook="mlp.hook_in",
        feature_output_hook="mlp.hook_out",
        device=torch.device("cpu"),
        dtype=torch.float32,
        lazy_encoder=False,
        lazy_decoder=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = TransformerLensReplacementModel(config, tokenizer=tokenizer, move_to_device=False)
    model.load_and_process_state_dict(
        state,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=True,
        refactor_factored_attn_matrices=False,
    )
    model._configure_replacement_model(transcoders)
    return model


def attribute(folder: Path, max_features: int | None, matrix: Path | None) -> dict[str, Any]:
    from circuit_tracer.attribution.attribute import attribute as run

    model, ids = load(folder), torch.tensor(case.prompt(folder))
    with Meter() as meter:
        graph = run(ids, model, batch_size=256, max_feature_nodes=max_features, verbose=False)
    if matrix is not None:
        from safetensors.torch import save_file

        features = graph.active_features[graph.selected_features].long()
        tensors = {"features": features, "matrix": graph.adjacency_matrix.float()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, matrix)
    return {
        **meter.figures,
        "active_features": len(graph.active_features),
        "nodes": len(graph.adjacency_matrix),
    }


def prune(nodes: int) -> dict[str, Any]:
    from circuit_tracer.attribution.targets import LogitTarget
    from circuit_tracer.graph import Graph, compute_graph_scores, prune_graph
    from circuit_tracer.utils.tl_nnsight_mapping import UnifiedConfig

    features, matrix, probabilities = case.dag(nodes)
    config = UnifiedConfig(
        n_layers=case.LAYERS,
        d_model=1,
        d_head=1,
        n_heads=1,
        d_mlp=1,
        d_vocab=len(probabilities),
        tokenizer_name="",
        model_name="",
        original_architecture="",
    )
    graph = Graph(
        input_string="",
        input_tokens=torch.zeros(case.TOKENS, dtype=torch.long),
        active_features=features,
        adjacency_matrix=matrix,
        cfg=config,
        selected_features=torch.arange(len(features)),
        activation_values=torch.ones(len(features)),
        logit_targets=[LogitTarget("", number) for number in range(len(probabilities))],
        logit_probabilities=probabilities,
        scan="benchmark",
        vocab_size=len(probabilities),
    )
    with Meter() as meter:
        kept = prune_graph(graph)
        scores = compute_graph_scores(graph)
    return {
        **meter.figures,
        "kept_nodes": int(kept.node_mask.sum()),
        "kept_edges": int(kept.edge_mask.sum()),
        "replacement": float(scores[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=("attribute", "prune"))
    parser.add_argument("what", help="the case's folder, or a number of nodes")
    parser.add_argument("--max-features", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--matrix", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.work == "prune":
        print(json.dumps(prune(int(given.what))))
    else:
        print(json.dumps(attribute(Path(given.what), given.max_features, given.matrix)))


if __name__ == "__main__":
    main()
