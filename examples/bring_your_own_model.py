"""Transcoders and a graph for a model that came without any.

    python bring_your_own_model.py                         a random model, made here, in seconds
    python bring_your_own_model.py --model DIR --texts 20000 --features 2048 --steps 4000

The model is a folder as Hugging Face saves them. Text is sampled from the model itself, which needs
no corpus and covers what the model says; text of your own is better, where you have it (--text).
"""

import argparse
from pathlib import Path

import torch
import transformers

import circuit_tracer as ct
from circuit_tracer.agreement import report
from circuit_tracer.models.load import open_model
from circuit_tracer.train.corpus import read_texts
from circuit_tracer.train.making import make
from circuit_tracer.train.settings import Settings

WORDS = "the a one old new red cat dog bird fish saw took found sold left by with and over near"


def somebodys_model(folder: Path) -> Path:
    """A folder with a small random GPT-2 and a tokenizer: it stands for yours."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<s>", "<unk>", *WORDS.split()]
    table = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=table, bos_token="<s>", eos_token="<s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(words), n_positions=64, n_embd=32, n_layer=3, n_head=4,
        initializer_range=0.3, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sampled(folder: Path, count: int, length: int = 32) -> list[str]:
    """Texts by the model itself."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(1)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    texts = []
    while len(texts) < count:
        ids = model.generate(
            torch.full((min(64, count - len(texts)), 1), start),
            attention_mask=torch.ones(min(64, count - len(texts)), 1, dtype=torch.long),
            do_sample=True,
            top_k=0,
            max_new_tokens=length,
            pad_token_id=start,
        )
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text for text in texts if text.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; without it one is made")
    parser.add_argument("--text", type=Path, help="a file or folder of text; without it, sampled")
    parser.add_argument("--texts", type=int, default=400, help="how many texts to sample")
    parser.add_argument("--features", type=int, default=192)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--prompt", help="what to trace; without it, the start of a text")
    given = parser.parse_args()

    folder = given.model or somebodys_model(Path("model"))
    texts = read_texts(given.text) if given.text else sampled(folder, given.texts)
    print(f"{len(texts)} texts, the first: {texts[0][:60]!r}")

    adapter, tokenizer = open_model(str(folder), torch.device("cpu"), torch.float32)
    settings = Settings(features=given.features, k=given.k, steps=given.steps, batch=512)
    agreement = make(adapter, tokenizer, texts, Path("transcoders"), settings)
    print("\n".join(f"{name}: {said}" for name, said in report.figures(agreement)))

    model = ct.load(folder, "transcoders")
    graph = ct.trace(given.prompt or " ".join(texts[0].split()[:6]), model)
    print(f"every row adds up to within {graph.closure_error:.0e}")
    graph.prune().save_html("circuit.html")
    print(ct.faithfulness(graph, model))


if __name__ == "__main__":
    main()
