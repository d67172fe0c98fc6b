"""Runs in LAVIS's own interpreter: pictures in, captions out, one line of JSON each way. Imports nothing of ours.

lavis/bin/python -I -u lavis_worker.py ANSWERS blip2_opt caption_coco_opt6.7b

Requests come on standard input. Answers go to the file descriptor ANSWERS, so that whatever libraries print cannot be
taken for one; the first says that the model is loaded. It ends with its input, and when its parent is gone.
"""

import base64
import importlib
import io
import json
import os
import sys
import threading
import time


def main() -> None:
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(int(sys.argv[1]), "w")
    name, model_type = sys.argv[2:4]

    import torch

    operators = _torchvision_operators(torch)  # they live as long as this name

    from lavis.models import load_model_and_preprocess
    from PIL import Image

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processors, _ = load_model_and_preprocess(name=name, model_type=model_type, is_eval=True, device=device)
    _say(answers, {"ready": device, "operators": operators is not None})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            pictures = [Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data in request["images"]]
            batch = torch.stack([processors["eval"](picture) for picture in pictures]).to(device)
            captions = model.generate(
                {"image": batch}, num_beams=request["num_beams"], max_length=request["max_length"]
            )
            _say(answers, {"captions": [str(caption) for caption in captions]})
        except Exception as error:  # one bad picture must not end the interpreter
            _say(answers, {"error": f"{type(error).__name__}: {error}"})


def _say(answers, answer) -> None:  # type: ignore[no-untyped-def]  # LAVIS's Python may be an old one
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _torchvision_operators(torch):  # type: ignore[no-untyped-def]
    """Names for operators that torchvision asks for at import where its library does not fit torch; no caption calls
    them."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for module in [module for module in sys.modules if module.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    except ImportError:
        return None
    return None


if __name__ == "__main__":
    main()
