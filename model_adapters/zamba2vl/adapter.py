"""A published Zamba2-VL folder behind the harness's adapter protocol."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import torch

from vlmamba_eval.adapter import AdapterInfo, Deferred
from vlmamba_eval.model_adapters.hybrid.adapter import HybridAdapter
from vlmamba_eval.model_adapters.hybrid.checkpoint import folder_of, load_into
from vlmamba_eval.model_adapters.hybrid.engine import HybridEngine
from vlmamba_eval.model_adapters.shared.configuration import read_json
from vlmamba_eval.model_adapters.shared.device import choose
from vlmamba_eval.model_adapters.vlmamba import ssd
from vlmamba_eval.model_adapters.vlmamba.checkpoint import fingerprint
from vlmamba_eval.types import UsageError

from . import PUBLISHED, Options
from .conversation import Zamba2VLConversation
from .images import prepare
from .model import Zamba2VL, config_of_published, keeps_float32, name_of_published


def load(name: str, options: Options) -> Deferred:
    """The adapter for a folder of published weights."""
    if options.min_image_tokens > options.max_image_tokens:
        raise UsageError(
            f"min_image_tokens={options.min_image_tokens} is more than max_image_tokens={options.max_image_tokens}"
        )
    folder = folder_of(name, "zamba2vl", PUBLISHED)
    where = folder / "config.json"
    config = config_of_published(read_json(where, "a Zamba2-VL's configuration"), str(where))
    conversation = Zamba2VLConversation(folder, config)
    device, dtype = choose(options.device, options.dtype)
    info = AdapterInfo(
        name=name if name in PUBLISHED else f"zamba2vl:{folder.resolve().name}",
        weights=fingerprint(folder),
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        image_tokens=options.max_image_tokens,
        settings={
            "model": asdict(config.text),
            "prompt": conversation.prompt("{question}", image=True),
            "image_tokens": [options.min_image_tokens, options.max_image_tokens],
            "dt_limit": None,
            "ssd_backend": ssd.choose_backend(device),
            "state_dtype": "float32",
            "sharing": options.sharing,
        },
    )

    def read() -> HybridAdapter:
        with torch.device("meta"):
            model = Zamba2VL(config)
        load_into(model, folder, partial(name_of_published, config), device, dtype, keeps_float32)
        model.reset_buffers(device)
        model.prepare_for_inference()
        engine = HybridEngine(model, conversation, sharing=options.sharing)
        limits = options.min_image_tokens, options.max_image_tokens
        return HybridAdapter(engine, info, partial(prepare, unit=config.unit, least=limits[0], most=limits[1]))

    return Deferred(info, read)
