"""Run by another Python, one that has lm-eval: what its own class for Hugging Face's models says of pairs of texts.

python hflm_oracle.py FOLDER PAIRS.json FOUND.json: of pairs of context and continuation [nats, greedy] each, by batches
of 1 and of 8.
"""

import json
import sys
from pathlib import Path


def main(folder: str, pairs: str, found: str) -> None:
    """Ask lm-eval's HFLM, in float32."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    asked = [
        Instance(request_type="loglikelihood", doc={}, arguments=tuple(pair), idx=place)
        for place, pair in enumerate(json.loads(Path(pairs).read_text()))
    ]
    said = {}
    for size in (1, 8):
        model = HFLM(pretrained=folder, dtype="float32", batch_size=size, device="cpu")
        said[size] = [[float(nats), bool(greedy)] for nats, greedy in model.loglikelihood(asked, disable_tqdm=True)]
    Path(found).write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
