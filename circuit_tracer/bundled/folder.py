"""The folders: a trained set written in the reference tool's layout, and read back.

Scales used in training are folded into the weights, biases and thresholds here, so that the files
speak the model's own units; they are rounded to bfloat16 once, and everything is measured on what
was rounded.  `Folded` reads a folder for measuring; it knows this layout and no other.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from circuit_tracer.train.folding import fold_layer
from circuit_tracer.train.network import Network

KINDS = {"plt": "transcoder_set", "clt": "cross_layer_transcoder"}
INPUT_SITE, OUTPUT_SITE = "mlp.hook_in", "hook_mlp_out"


def fold(net: Network) -> dict[str, list[Tensor]]:
    """The set in the model's own units (`train.folding`), one bfloat16 tensor a layer.

    W_enc (features, d_model), b_enc (features), threshold (features), b_dec (d_model) and W_dec
    (features, reach, d_model), of unit norm.
    """
    layers = [fold_layer(net, layer) for layer in range(net.layers)]
    out = {
        "W_enc": [layer.encoder for layer in layers],
        "b_enc": [layer.encoder_bias for layer in layers],
        "threshold": [layer.threshold for layer in layers],
        "b_dec": [layer.output_bias for layer in layers],
        "W_dec": [layer.decoder for layer in layers],
    }
    return {name: [t.to(torch.bfloat16).contiguous() for t in ts] for name, ts in out.items()}


@torch.no_grad()
def round_off(net: Network, folded: dict[str, list[Tensor]]) -> Network:
    """Put folded, rounded weights back into a network with the same scales, to train it on."""
    for layer in range(net.layers):
        one = {name: tensors[layer].float() for name, tensors in folded.items()}
        scales = net.scale_out[layer : layer + net.reach(layer), None]
        net.w_dec[layer].copy_(one["W_dec"] / scales)
        net.w_enc[layer].copy_(one["W_enc"] / net.scale_in[layer])
        net.b_enc[layer].copy_(one["b_enc"])
        net.threshold[layer].copy_(one["threshold"])
        net.b_dec[layer].copy_((one["b_dec"] - net.center[layer]) / net.scale_out[layer])
    return net


def write(folded: dict[str, list[Tensor]], kind: str, folder: Path, model_name: str) -> None:
    """Write a folded set as a folder of the reference tool's layout."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for layer, writes in enumerate(folded["W_dec"]):
        one = {name: tensors[layer] for name, tensors in folded.items()}
        if kind == "plt":
            one["W_dec"] = writes[:, 0].contiguous()
            one["activation_function.threshold"] = one.pop("threshold")
            save_file(one, folder / f"layer_{layer}.safetensors")
        else:
            writes = one.pop("W_dec")
            named = {f"{name}_{layer}": tensor for name, tensor in one.items()}
            save_file(named, folder / f"W_enc_{layer}.safetensors")
            save_file({f"W_dec_{layer}": writes}, folder / f"W_dec_{layer}.safetensors")
    lines = {
        "model_name": model_name,
        "model_kind": KINDS[kind],
        "feature_input_hook": INPUT_SITE,
        "feature_output_hook": OUTPUT_SITE,
        "scan": f"{model_name}-{kind}",
    }
    text = "".join(f"{name}: {value}\n" for name, value in lines.items())
    (folder / "config.yaml").write_text(text, encoding="utf-8")


class Folded:
    """A set read back from its folder, computed in float32: what ships, and what is measured."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        found: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            for name, tensor in load_file(path).items():
                layer = path.stem.split("_")[-1]
                stem = name.removesuffix(f"_{layer}").removeprefix("activation_function.")
                found[f"{stem}_{layer}"] = tensor.float()
        self.layers = sum(name.startswith("W_enc_") for name in found)
        names = ("W_enc", "b_enc", "threshold", "b_dec", "W_dec")
        per_layer = {n: [found[f"{n}_{layer}"] for layer in range(self.layers)] for n in names}
        self.w_enc, self.b_enc = per_layer["W_enc"], per_layer["b_enc"]
        self.threshold, self.b_dec = per_layer["threshold"], per_layer["b_dec"]
        self.w_dec = [w[:, None] if w.ndim == 2 else w for w in per_layer["W_dec"]]

    def encode(self, layer: int, inputs: Tensor) -> Tensor:
        """`mlp.hook_in` (…, d_model) -> activations (…, features); JumpReLU, strict."""
        pre = inputs @ self.w_enc[layer].T + self.b_enc[layer]
        return pre * (pre > self.threshold[layer])

    def decode(self, layer: int, active: list[Tensor]) -> Tensor:
        """Activations of layers 0..layer -> the reconstruction of `hook_mlp_out` at `layer`."""
        out = self.b_dec[layer]
        for source, writes in enumerate(self.w_dec[: layer + 1]):
            if layer - source < writes.shape[1]:
                out = out + active[source] @ writes[:, layer - source]
        return out
