"""The tutorial, docs/tutorial_your_own_model.md, from a model's folder to a graph and its card.

    python bring_your_own_model.py --model DIR --prompt "…"     a folder as Hugging Face saves them
    python bring_your_own_model.py                              with a stand-in for such a folder
    python bring_your_own_model.py --quick                      likewise, too short to learn much

The stand-in is pretrained first, by transformers and a plain optimiser: nothing here knows how.
Every command is printed before it runs, and then what it took. Files are left where it is run.
"""

import argparse
import random
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers

from circuit_tracer.cli.main import main as circuit_tracer

SAYS = {
    "cat cats": "purr", "dog dogs": "bark", "bird birds": "sing", "horse horses": "run",
    "fish fishes": "swim", "bee bees": "hum", "frog frogs": "jump", "wolf wolves": "howl",
    "lion lions": "roar", "mouse mice": "squeak",
}  # fmt: skip
ADJECTIVES = ("old", "young", "big", "small", "red", "grey")
BETWEEN = ("near", "behind", "with", "above")
PROMPT = "the cats near the old dog"
FULL = {"pretraining": 1200, "texts": 3000, "features": 128, "k": 32, "steps": 700}
QUICK = {"pretraining": 30, "texts": 150, "features": 64, "k": 8, "steps": 40}


def sentence(draw: random.Random) -> str:
    """An animal in the singular or plural, perhaps near another one, and what the first does."""

    def animal() -> tuple[str, str]:
        pair, number = draw.choice(list(SAYS)), draw.randrange(2)
        verb = SAYS[pair] + ("s" if number == 0 else "")
        quality = f"{draw.choice(ADJECTIVES)} " if draw.random() < 0.5 else ""
        return f"the {quality}{pair.split()[number]}", verb

    first, verb = animal()
    other = f" {draw.choice(BETWEEN)} {animal()[0]}" if draw.random() < 0.6 else ""
    return f"{first}{other} {verb}"


def somebodys_model(folder: Path, steps: int) -> None:
    """A folder with a small Llama that was pretrained, and its tokenizer: it stands for yours."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    draw = random.Random(0)
    words = sorted({word for _ in range(2000) for word in sentence(draw).split()})
    ids = {word: number for number, word in enumerate(["<s>", "</s>", "<unk>", "and", *words])}
    table = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    table.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=table, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="</s>", padding_side="right",
    )  # fmt: skip
    config = transformers.LlamaConfig(
        vocab_size=len(ids), hidden_size=64, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    falling = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(steps):
        texts = [f"{sentence(draw)} and {sentence(draw)} </s>" for _ in range(64)]
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        model(input_ids=batch.input_ids, labels=labels).loss.backward()
        optimiser.step()
        falling.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def sampled(folder: Path, count: int, length: int = 64) -> list[str]:
    """Texts by the model itself."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(1)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    texts: list[str] = []
    while len(texts) < count:
        ids = model.generate(
            torch.full((64, 1), start),
            attention_mask=torch.ones(64, 1, dtype=torch.long),
            do_sample=True,
            top_k=0,
            max_length=length,
            pad_token_id=tokenizer.eos_token_id,
        )
        texts += [text for text in tokenizer.batch_decode(ids, skip_special_tokens=True) if text]
    return texts[:count]


def commands(model: str, text: str, prompt: str, features: int, k: int, steps: int) -> list[str]:
    """What is typed, line by line."""
    model, text, prompt = (shlex.quote(given) for given in (model, text, prompt))
    return [
        f"circuit-tracer doctor --model {model}",
        f"circuit-tracer train --model {model} --text {text} --features {features} --k {k} "
        f"--steps {steps} --batch 512 -o plt",
        f"circuit-tracer trace {prompt} --model {model} --transcoders plt --verify "
        "--save graph.safetensors -o graph.html",
        "circuit-tracer query graph.safetensors",
    ]


@contextmanager
def timed(what: str) -> Iterator[None]:
    print(what, flush=True)
    wall, used = time.perf_counter(), time.process_time()
    yield
    wall, used = time.perf_counter() - wall, time.process_time() - used
    print(f"# {wall:.1f} s, {used:.1f} s of them computing\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; without it one is made")
    parser.add_argument("--text", type=Path, help="a file or folder of text; without it, sampled")
    parser.add_argument("--prompt", default=PROMPT, help="what to trace")
    parser.add_argument("--quick", action="store_true", help="see that it runs")
    given = parser.parse_args()
    much = QUICK if given.quick else FULL

    model, text = given.model or Path("theirs"), given.text or Path("sampled.txt")
    if given.model is None:
        with timed("pretraining a stand-in"):
            somebodys_model(model, much["pretraining"])
    if given.text is None:
        with timed("sampling text"):
            lines = sampled(model, much["texts"])
            text.write_text("\n".join(lines) + "\n", encoding="utf-8")
            print("\n".join(lines[:3]))
    sizes = much["features"], much["k"], much["steps"]
    for command in commands(str(model), str(text), given.prompt, *sizes):
        with timed(f"$ {command}"):
            circuit_tracer(shlex.split(command)[1:], standalone_mode=False)


if __name__ == "__main__":
    main()
