"""Runs in LAVIS's own interpreter: pictures in, captions out, one line of JSON each way. Imports nothing of ours.

lavis/bin/python lavis_worker.py blip2_opt caption_coco_opt6.7b
"""

import base64
import io
import json
import os
import sys


def main() -> None:
    # Libraries print to standard output; the answers keep it for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    import torch
    from lavis.models import load_model_and_preprocess
    from PIL import Image

    name, model_type = sys.argv[1:3]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processors, _ = load_model_and_preprocess(name=name, model_type=model_type, is_eval=True, device=device)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            pictures = [Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data in request["images"]]
            batch = torch.stack([processors["eval"](picture) for picture in pictures]).to(device)
            captions = model.generate(
                {"image": batch}, num_beams=request["num_beams"], max_length=request["max_length"]
            )
            answer = {"captions": captions}
        except Exception as error:  # one bad picture must not end the interpreter
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
